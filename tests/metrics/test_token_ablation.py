"""One token run again by itself, against the whole model with the splice at that token alone."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import CheckFailure, UserError
from sae.lm import LanguageModel
from sae.metrics.token_ablation import TokenAblation

SITES = [
    "blocks.0.hook_resid_pre",
    "blocks.0.hook_attn_out",
    "blocks.0.hook_resid_mid",
    "blocks.0.mlp.hook_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_mid",
    "blocks.1.hook_resid_post",
]


def rows(lm: LanguageModel, sequences: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens_ST = torch.randint(1, lm.vocab_size, (sequences, lm.context), generator=generator)
    tokens_ST[:, 0] = 0
    return tokens_ST


def spliced(lm: LanguageModel, site: str, row_1T: Tensor, position: int, part_D: Tensor) -> Tensor:
    """Log probabilities (V,) at `position`, with the part taken out there."""

    def replace(x_BD: Tensor) -> Tensor:
        changed_BD = x_BD.clone()
        changed_BD[position - 1] -= part_D  # position 0 is not given
        return changed_BD

    with lm.splice(site, replace):
        return F.log_softmax(lm.logits(row_1T)[0, position].double(), dim=-1)


@pytest.mark.parametrize("site", SITES)
def test_it_is_what_the_whole_model_says(lm: LanguageModel, site: str) -> None:
    tokens_ST = rows(lm)
    generator = torch.Generator().manual_seed(1)
    position_N = torch.tensor([1, 4, 4, 17, 30])
    part_ND = torch.randn(5, lm.site_width(site), generator=generator)
    ablation = TokenAblation(lm, site)
    kl_N, lost_N = ablation.effects(ablation.read(tokens_ST), 2, position_N, part_ND)
    for n, position in enumerate(position_N.tolist()):
        row_1T = tokens_ST[2:3]
        log_p = F.log_softmax(lm.logits(row_1T)[0, position].double(), dim=-1)
        log_q = spliced(lm, site, row_1T, position, part_ND[n])
        target = row_1T[0, position + 1]
        assert float(kl_N[n]) == pytest.approx(
            float((log_p.exp() * (log_p - log_q)).sum()), abs=2e-5
        )
        assert float(lost_N[n]) == pytest.approx(float((log_p - log_q)[target]), abs=2e-5)
    assert float(kl_N.min()) > 1e-3  # something was changed, everywhere


@pytest.mark.parametrize("site", SITES)
def test_nothing_taken_out_costs_nothing(lm: LanguageModel, site: str) -> None:
    ablation = TokenAblation(lm, site)
    clean = ablation.read(rows(lm))
    nothing_ND = torch.zeros(30, lm.site_width(site))
    for effect_N in ablation.effects(clean, 0, torch.arange(1, 31), nothing_ND):
        assert float(effect_N.abs().max()) < 1e-5


def test_after_the_last_block_it_is_a_layer_norm_and_a_product(lm: LanguageModel) -> None:
    tokens_ST = rows(lm)
    site = "blocks.1.hook_resid_post"
    ablation = TokenAblation(lm, site)
    part_ND = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    kl_N, lost_N = ablation.effects(ablation.read(tokens_ST), 1, torch.tensor([9]), part_ND)
    x_D = lm.capture(tokens_ST, [site])[site][1, 9]
    norm, unembed_VD = lm.model.transformer.ln_f, lm.model.lm_head.weight
    log_p, log_q = (F.log_softmax(norm(x) @ unembed_VD.T, -1) for x in (x_D, x_D - part_ND[0]))
    assert float(kl_N[0]) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=1e-5)
    target = tokens_ST[1, 10]
    assert float(lost_N[0]) == pytest.approx(float((log_p - log_q)[target]), abs=1e-5)


def test_a_model_that_cannot_be_continued_gives_no_number(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = TokenAblation._attend
    monkeypatch.setattr(TokenAblation, "_attend", lambda *given: 0.5 * attend(*given))
    with pytest.raises(CheckFailure, match="changes a prediction"):
        TokenAblation(lm, "blocks.0.hook_resid_post").read(rows(lm))


def test_half_precision_is_refused(lm: LanguageModel) -> None:
    half = LanguageModel(deepcopy(lm.model).bfloat16(), lm.tokenizer, lm.name, lm.hash)
    with pytest.raises(UserError, match="float32"):
        TokenAblation(half, "blocks.0.hook_resid_post")
