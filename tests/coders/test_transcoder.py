from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.base.files import read_json, write_json
from sae.base.sums import seal
from sae.coders import ARCHITECTURES, TwoSites, load_coder, make_coder, save_coder
from sae.coders.registry import TRAINABLE, TWO_SITES
from sae.kernels import get_kernels

D, OUT, F, B = 10, 6, 40, 200


def make(architecture: str, scale: float = 1.0) -> tuple[TwoSites, torch.Tensor, torch.Tensor]:
    """A transcoder with no weight at 0, an input and a target of another scale and width."""
    wanted = {"k": 4, "l1": 0.02}
    options = {n: v for n, v in wanted.items() if n in ARCHITECTURES[architecture].hyperparameters}
    coder = make_coder(architecture, D, F, d_out=OUT, **options)
    assert isinstance(coder, TwoSites)
    torch.manual_seed(0)
    x_BD, y_BD = torch.randn(B, D) * 3 + 1, torch.randn(B, OUT) * 0.2 - 1
    coder.initialise(scale * x_BD.mean(0), torch.Generator().manual_seed(1), y_BD.mean(0))
    for name, parameter in coder.named_parameters():
        if name.startswith(("b_", "W_skip", "threshold")):
            parameter.data += 0.1 * torch.rand_like(parameter)
    if architecture in TRAINABLE:
        coder.training_forward(scale * x_BD, get_kernels())
    return coder.double(), x_BD.double(), y_BD.double()


@pytest.mark.parametrize("architecture", TWO_SITES)
@pytest.mark.parametrize(("scale", "target_scale"), [(0.2, 7.0), (30.0, 0.5), (1.0, 1.0)])
def test_folding_two_scales_is_exact(architecture: str, scale: float, target_scale: float) -> None:
    """saved(x) == trained(scale · x) / target_scale, and the same latents fire."""
    coder, x_BD, _ = make(architecture, scale)
    trained, saved = coder.for_inference().double(), coder.folded(scale, target_scale)
    inside, outside = trained.encode(x_BD * scale), saved.encode(x_BD)
    assert inside.dense().count_nonzero() > 0
    torch.testing.assert_close(outside.dense(), inside.dense() / target_scale)
    torch.testing.assert_close(saved(x_BD), trained(x_BD * scale) / target_scale)
    norms_F = saved.W_dec_FD.norm(dim=1)
    torch.testing.assert_close(norms_F, torch.ones_like(norms_F))


@pytest.mark.parametrize("architecture", [a for a in TWO_SITES if a in TRAINABLE])
def test_it_learns_a_map_between_two_spaces(architecture: str) -> None:
    """The target is a sparse function of the input: ReLU of one coordinate each."""
    coder, _, _ = make(architecture)
    coder = coder.float()
    generator = torch.Generator().manual_seed(4)
    x_BD = torch.randn(2048, D, generator=generator)
    y_BD = torch.relu(x_BD[:, :OUT] - 1)
    coder.initialise(x_BD.mean(0), generator, y_BD.mean(0))
    adam = torch.optim.Adam(coder.parameters(), lr=0.01)
    for _ in range(400):
        forward = coder.training_forward(x_BD, get_kernels())
        loss = (forward.x_hat_BD - y_BD).square().mean()
        (loss if forward.penalty is None else loss + forward.penalty).backward()
        adam.step()
        adam.zero_grad()
        coder.W_dec_FD.data = torch.nn.functional.normalize(coder.W_dec_FD.data, dim=1)
    fvu = (coder.for_inference()(x_BD) - y_BD).square().sum() / (y_BD - y_BD.mean(0)).square().sum()
    assert fvu < 0.25


@pytest.mark.parametrize(
    ("architecture", "saved_as"),
    [
        ("transcoder", "jumprelu_transcoder"),
        ("skip_transcoder", "jumprelu_skip_transcoder"),
        ("relu_transcoder", "transcoder"),
        ("relu_skip_transcoder", "skip_transcoder"),
    ],
)
def test_the_folder_is_sae_lenss(tmp_path: Path, architecture: str, saved_as: str) -> None:
    coder, x_BD, _ = make(architecture)
    save_coder(coder.float().folded(2.0, 3.0), tmp_path)
    config = read_json(tmp_path / "cfg.json")
    assert (config["architecture"], config["d_in"], config["d_out"]) == (saved_as, D, OUT)
    assert config["apply_b_dec_to_input"] is False
    found = load_coder(tmp_path)(x_BD.float())
    torch.testing.assert_close(found, coder.folded(2.0, 3.0)(x_BD.float()))
    write_json(tmp_path / "cfg.json", {**config, "apply_b_dec_to_input": True})
    seal(tmp_path, ["cfg.json"])
    with pytest.raises(UserError, match="apply_b_dec_to_input"):
        load_coder(tmp_path)


def test_a_skip_needs_the_input_to_decode() -> None:
    coder, x_BD, _ = make("skip_transcoder")
    with pytest.raises(UserError, match=r"decode\(codes, x_BD\)"):
        coder.decode(coder.encode(x_BD))


def test_nothing_is_subtracted_from_the_input() -> None:
    coder, x_BD, _ = make("relu_transcoder")
    pre_BF = x_BD @ coder.W_enc_FD.T + coder.b_enc_F
    torch.testing.assert_close(coder.encode(x_BD).dense(), torch.relu(pre_BF))
