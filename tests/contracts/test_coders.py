"""What every architecture must do; adding one to the registry runs all of this on it."""

import copy
from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import (
    ARCHITECTURES,
    Coder,
    Codes,
    TwoSites,
    entries,
    load_coder,
    make_coder,
    save_coder,
)
from sae.coders.gated import Gated
from sae.coders.jumprelu import JumpReLU
from sae.coders.registry import TRAINABLE
from sae.kernels import get_kernels
from tests.kernels.places import PLACES, kernels_at

D, F, B = 12, 40, 64
OPTIONS = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka": {"k": 4, "prefixes": (0.25, 0.5, 1.0)},
    "relu": {"l1": 1.0},
    "relu_unconstrained": {"l1": 1.0},
    "gated": {"l1": 1.0},
    "jumprelu": {"target_l0": 8},
    "ista": {"steps": 3, "l1": 1.0},
    "matching_pursuit": {"max_iterations": 4},
    "switch": {"k": 4, "experts": 4},
    "transcoder": {"k": 4, "d_out": 7},
    "skip_transcoder": {"k": 4, "d_out": 7},
    "relu_transcoder": {"l1": 1.0, "d_out": 7},
    "relu_skip_transcoder": {"l1": 1.0, "d_out": 7},
    "jumprelu_transcoder": {"d_out": 7},
    "jumprelu_skip_transcoder": {"d_out": 7},
}
FREE_L0 = ("relu", "relu_unconstrained", "gated", "jumprelu", "relu_skip_transcoder")


def make_trained(architecture: str, scale: float = 1.0) -> tuple[Coder, torch.Tensor]:
    """A coder that saw one batch, with biases that are not zero; and raw activations."""
    torch.manual_seed(0)
    x_BD = torch.randn(B, D) * 3 + 1
    coder = make_coder(architecture, D, F, **OPTIONS.get(architecture, {}))
    coder.initialise((x_BD * scale).mean(0), torch.Generator().manual_seed(1))
    with torch.no_grad():
        coder.b_enc_F.copy_(torch.randn(F) * 0.1)
    if architecture in TRAINABLE:
        coder.training_forward(x_BD * scale, get_kernels())
    if isinstance(coder, TwoSites) and coder.skip:
        coder.W_skip_OD.data.normal_(0, 0.1)
    if isinstance(coder, JumpReLU):
        coder.threshold_F.data.uniform_(0, 0.5)
    if isinstance(coder, Gated):
        coder.b_mag_F.data.uniform_(-0.5, 0.5)
        coder.r_mag_F.data.uniform_(-0.5, 0.5)
    return coder, x_BD


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_is_the_same_coder(architecture: str, tmp_path: Path) -> None:
    coder, x_BD = make_trained(architecture)
    coder.metadata = {"hook_name": "blocks.1.hook_resid_post", "loupe": {"seed": 3}}
    save_coder(coder.folded(1.0), tmp_path / "c")
    loaded = load_coder(tmp_path / "c")
    assert loaded.metadata["loupe"] == {"seed": 3}
    torch.testing.assert_close(loaded(x_BD), coder.folded(1.0)(x_BD), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scale", [0.07, 5.0])
def test_folding_is_exact(architecture: str, scale: float) -> None:
    """saved(x) == trained(scale * x) / scale, and the same latents fire."""
    coder, x_BD = make_trained(architecture, scale)
    coder, x_BD = coder.double(), x_BD.double()
    trained = coder.for_inference().double()
    saved = coder.folded(scale)
    inside, outside = trained.encode(x_BD * scale), saved.encode(x_BD)
    assert inside.dense().count_nonzero() > 0
    torch.testing.assert_close(outside.dense(), inside.dense() / scale)
    torch.testing.assert_close(saved(x_BD), trained(x_BD * scale) / scale)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_can_borrow_the_matrices_and_leaves_them_alone(architecture: str) -> None:
    coder, x_BD = make_trained(architecture)
    before = copy.deepcopy(coder.state_dict())
    lent, own = coder.folded(0.3, borrow=True), coder.folded(0.3)
    torch.testing.assert_close(lent(x_BD), own(x_BD), rtol=0, atol=0)
    for name, weight in coder.state_dict().items():
        assert torch.equal(weight, before[name]), name
    shared = lent.W_dec_FD.data_ptr() == coder.W_dec_FD.data_ptr()
    assert shared is (architecture != "relu_unconstrained")  # which folds its decoder's norms
    assert own.W_dec_FD.data_ptr() != coder.W_dec_FD.data_ptr()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_are_not_negative_and_decode_linearly(architecture: str) -> None:
    coder, x_BD = make_trained(architecture)
    codes = coder.encode(x_BD)
    assert (codes.acts_N >= 0).all()
    expected = codes.dense() @ coder.W_dec_FD + coder.b_dec_D
    if isinstance(coder, TwoSites) and coder.skip:
        expected = expected + x_BD @ coder.W_skip_OD.T
    torch.testing.assert_close(coder.decode(codes, x_BD), expected)


@pytest.mark.parametrize("architecture", TRAINABLE)
@pytest.mark.parametrize("rows", [B, 3])
def test_backends_train_alike(architecture: str, rows: int) -> None:
    """Three rows touch few latents: gradients of their rows alone are the whole ones."""
    found = []
    for backend, device in [("reference", "cpu"), *PLACES]:
        coder, x_BD = make_trained(architecture)
        coder, x_BD = coder.to(device, torch.float64), x_BD[:rows].to(device, torch.float64)
        forward = coder.training_forward(x_BD, kernels_at(backend, device))
        square, residual_BD = forward.error(x_BD.new_ones(rows, coder.d_out))
        (square + (forward.penalty or 0)).backward()
        torch.testing.assert_close(residual_BD, (1 - forward.x_hat_BD).detach())
        gradients = [p.grad for p in coder.parameters() if p.requires_grad]
        whole = [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
        found.append([g if g is None else g.detach().cpu() for g in (square, *whole)])
    truth, *others = found
    for ours in others:
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_coder_works_in_every_dtype(architecture: str, dtype: torch.dtype) -> None:
    """Kernels are chosen by dtype; a half-precision coder stays near to itself in float64."""
    coder, x_BD = make_trained(architecture)
    coder, x_BD = coder.for_inference().to(dtype), x_BD.to(dtype)
    exact = copy.deepcopy(coder).double()
    codes = coder.encode(x_BD)
    found_BD = coder.decode(codes, x_BD)
    assert codes.acts_N.dtype == found_BD.dtype == dtype
    assert codes.acts_N.count_nonzero() > 0
    same = Codes(codes.acts_N.double(), codes.support)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        found_BD.double(), exact.decode(same, x_BD.double()), rtol=8 * eps, atol=32 * eps
    )
    whole_BD = exact(x_BD.double())
    assert (found_BD - whole_BD).norm() < 0.2 * whole_BD.norm()  # near-ties fall otherwise


@pytest.mark.parametrize("architecture", FREE_L0)
def test_the_dense_form_and_the_sparse_form_train_alike(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where L0 is free: the same loss, codes and gradients, whichever form is chosen."""
    found = []
    for dense_above in (0.0, 1.0):
        monkeypatch.setattr(entries, "DENSE_ABOVE", dense_above)
        coder, x_BD = make_trained(architecture)
        coder, x_BD = coder.double(), x_BD.double()
        forward = coder.training_forward(x_BD, get_kernels())
        loss = (forward.x_hat_BD - 1).square().sum() + (forward.penalty or 0)
        loss.backward()
        gradients = [p.grad for p in coder.parameters()]
        penalty_B = coder.row_penalty(forward.codes)
        found.append([loss, forward.codes.dense(), penalty_B, *gradients])
    for sparse, dense in zip(*found, strict=True):
        assert dense is not None
        torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrong_width_is_a_sentence(architecture: str) -> None:
    coder, _ = make_trained(architecture)
    with pytest.raises(UserError, match="rows, 12"):
        coder.encode(torch.zeros(3, D + 1))


def test_topk_has_exactly_k() -> None:
    coder, x_BD = make_trained("topk")
    assert coder.encode(x_BD).acts_BK.shape == (B, 4)


def test_batchtopk_averages_k_by_its_threshold() -> None:
    coder, x_BD = make_trained("batchtopk")
    codes = coder.for_inference().encode(x_BD)
    assert abs(codes.l0().float().mean() - 4) <= 1 / B  # the smallest one lies on the threshold
    assert codes.l0().unique().numel() > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_coder("topk", 8, 16, k=17), "between 1 and the dictionary's width, 16"),
        (lambda: make_coder("topkk", 8, 16), "Did you mean `topk`"),
        (lambda: make_coder("topk", 8, 16, l1=2), "no hyperparameter `l1`"),
        (lambda: make_coder("relu", 0, 16), "positive"),
        (lambda: load_coder("/nowhere"), "sae train"),
    ],
)
def test_mistakes_get_a_sentence(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("normalize_activations", "layer_norm", "normalize_activations"),
        ("architecture", "temporal", "temporal"),
    ],
)
def test_settings_that_change_meaning_are_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    from sae.base.files import read_json, write_json
    from sae.base.sums import seal

    save_coder(make_trained("topk")[0].folded(1.0), tmp_path)
    config = read_json(tmp_path / "cfg.json")
    write_json(tmp_path / "cfg.json", {**config, key: value})
    seal(tmp_path, ["cfg.json"])
    with pytest.raises(UserError, match=message):
        load_coder(tmp_path)
