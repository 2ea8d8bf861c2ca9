"""What the model's next prediction loses when one latent is taken out at one token.

    x_t ↦ x_t − f_i(x_t) d_i        at the token t alone; the coder's error stays

Earlier tokens are as they were, so the keys and values that t attends to are those of the clean
run: only t itself is run again through the blocks after the site. A whole row per ablation
would cost as many times more as the row has tokens. (Gao et al. 2024, "Scaling and evaluating
sparse autoencoders", section 4.5, ablate at one token too.) It says nothing of what the latent
does to the tokens after t, and little of latents that stay on and are read from earlier tokens.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import CheckFailure, UserError

if TYPE_CHECKING:
    from sae.lm import LanguageModel

TOLERANCE = 1e-4  # nats: what taking nothing out may change, of rounding
LOGIT_ROWS = 1024  # rows of (rows, V) logits that exist at a time
LARGE = 60.0  # changes of a logit beyond this are exponentiated with care
_HALVES = {  # half-blocks (attention, MLP) that are behind the point, of its block's two
    "hook_resid_pre": 0,
    "hook_resid_mid": 1,
    "hook_attn_out": 1,
    "hook_resid_post": 2,
    "hook_mlp_out": 2,
    "mlp.hook_post": 2,
}


@dataclass(frozen=True)
class Clean:
    """Rows that were run unchanged.

    `entry_STD` is the stream where ablations enter, `known` the keys and values (S, H, T, E) of
    each block after that, `hidden_STD` the final hidden states.
    """

    tokens_ST: Tensor
    entry_STD: Tensor
    known: dict[int, tuple[Tensor, Tensor]]
    hidden_STD: Tensor


class TokenAblation:
    """Ablations at `site`, the one where the coder writes, one token each.

        ablation = TokenAblation(lm, "blocks.2.hook_resid_post")
        clean = ablation.read(tokens_ST)
        kl_N, delta_ce_N = ablation.effects(clean, s, position_N, part_ND)   # of sequence s

    Raises `UserError` unless the model is in float32.
    """

    def __init__(self, lm: "LanguageModel", site: str) -> None:
        if lm.dtype != torch.float32:
            raise UserError(
                f"Ablations are measured in float32, but `{lm.name}` was loaded as {lm.dtype}; "
                'load it with `load_lm(..., dtype="float32")`.'
            )
        self.lm, self.site = lm, lm.site(site)
        self.halves = 2 * self.site.layer + _HALVES[self.site.point]
        self._blocks: list[Any] = list(lm.model.transformer.h)
        self._checked = False

    @torch.inference_mode()
    def read(self, tokens_ST: Tensor) -> Clean:
        """One clean run of whole rows (S, T), and what ablations in them need of it.

        Raises `CheckFailure` if taking nothing out of the first row that is read changes one of
        its predictions: then nothing measured here would mean anything.
        """
        first, inside = divmod(self.halves, 2)
        entry = f"blocks.{first}.hook_resid_mid" if inside else self._input_of(first)
        later = {j: self._input_of(j) for j in range(first + inside, len(self._blocks))}
        last = self._input_of(len(self._blocks))
        streams = self.lm.capture(tokens_ST, [*{entry, last, *later.values()}])
        known = {j: self._keys_and_values(j, streams[name]) for j, name in later.items()}
        hidden_STD = self.lm.model.transformer.ln_f(streams[last])
        clean = Clean(tokens_ST.to(self.lm.device), streams[entry], known, hidden_STD)
        if not self._checked:
            self._check(clean)
        self._checked = True
        return clean

    @torch.inference_mode()
    def effects(
        self, clean: Clean, sequence: int, position_N: Tensor, part_ND: Tensor
    ) -> tuple[Tensor, Tensor]:
        """KL(p ‖ p̂) and ΔCE (N,) float64 in nats, of the predictions made at N tokens of a row.

        `part_ND` is f_i d_i of the latent that is taken out at each; positions are at most T − 2,
        since the last token of a row predicts nothing that is known.
        """
        device = self.lm.device
        position_N, part_ND = position_N.to(device), part_ND.to(device, torch.float32)
        hidden_ND = self._finish(clean, sequence, position_N, self._into_stream(part_ND))
        unique_U, which_N = position_N.unique(return_inverse=True)
        clean_UD = clean.hidden_STD[sequence, unique_U]
        unembed_VD = self.lm.model.lm_head.weight
        p_UV = (clean_UD @ unembed_VD.T).softmax(-1)
        change_ND = hidden_ND - clean_UD[which_N]
        target_N = clean.tokens_ST[sequence, position_N + 1]
        found = [
            _effects(p_UV[which_N[rows]], change_ND[rows] @ unembed_VD.T, target_N[rows])
            for rows in torch.arange(len(position_N), device=device).split(LOGIT_ROWS)
        ]
        kl_N, lost_N = torch.cat(found, dim=1).cpu()
        return kl_N, lost_N

    def _input_of(self, block: int) -> str:
        """The stream before a block; after the last one, its output."""
        if block < len(self._blocks):
            return f"blocks.{block}.hook_resid_pre"
        return f"blocks.{block - 1}.hook_resid_post"

    def _into_stream(self, part_ND: Tensor) -> Tensor:
        """What leaves the residual stream with `part`: neurons write through the MLP's output."""
        if self.site.point != "mlp.hook_post":
            return part_ND
        return part_ND @ self._blocks[self.site.layer].mlp.c_proj.weight

    def _finish(self, clean: Clean, sequence: int, position_N: Tensor, part_ND: Tensor) -> Tensor:
        """Final hidden states (N, D) of the tokens, each with its part taken out."""
        state_ND = clean.entry_STD[sequence, position_N] - part_ND
        first, inside = divmod(self.halves, 2)
        if inside:
            block = self._blocks[first]
            state_ND = state_ND + block.mlp(block.ln_2(state_ND))
        for j, (keys_SHTE, values_SHTE) in clean.known.items():
            block = self._blocks[j]
            seen_ND = self._attend(
                block, state_ND, keys_SHTE[sequence], values_SHTE[sequence], position_N
            )
            state_ND = state_ND + seen_ND
            state_ND = state_ND + block.mlp(block.ln_2(state_ND))
        return self.lm.model.transformer.ln_f(state_ND)

    def _keys_and_values(self, block: int, x_STD: Tensor) -> tuple[Tensor, Tensor]:
        """(S, H, T, E) each, of H heads of width E."""
        here = self._blocks[block]
        _, keys_STD, values_STD = here.attn.c_attn(here.ln_1(x_STD)).chunk(3, dim=-1)
        return self._heads(here, keys_STD), self._heads(here, values_STD)

    def _heads(self, block: Any, x: Tensor) -> Tensor:
        return x.unflatten(-1, (block.attn.num_heads, -1)).transpose(-3, -2)

    def _attend(
        self, block: Any, x_ND: Tensor, keys_HTE: Tensor, values_HTE: Tensor, position_N: Tensor
    ) -> Tensor:
        """Attention of N changed tokens to the unchanged ones before them, and to themselves."""
        parts = block.attn.c_attn(block.ln_1(x_ND)).chunk(3, dim=-1)
        query_HNE, key_HNE, value_HNE = (self._heads(block, part) for part in parts)
        own_HN1 = (query_HNE * key_HNE).sum(-1, keepdim=True)
        before_NT = torch.arange(keys_HTE.shape[1], device=x_ND.device) < position_N[:, None]
        scores_HNT = (query_HNE @ keys_HTE.mT).masked_fill(~before_NT, -math.inf)
        scale = block.attn.scaling
        weights = torch.cat([scores_HNT, own_HN1], dim=-1).mul_(scale).softmax(-1)
        mixed_HNE = weights[..., :-1] @ values_HTE + weights[..., -1:] * value_HNE
        return block.attn.c_proj(mixed_HNE.transpose(0, 1).flatten(1))

    def _check(self, clean: Clean) -> None:
        """Taking nothing out of the first row must give its own predictions."""
        length, width = clean.tokens_ST.shape[1], clean.hidden_STD.shape[-1]
        position_N = torch.arange(1, length - 1, device=self.lm.device)
        if not len(position_N):
            raise UserError(f"Rows of {length} tokens hold no prediction; take longer ones.")
        nothing_ND = clean.hidden_STD.new_zeros(len(position_N), width)
        again_ND = self._finish(clean, 0, position_N, nothing_ND)
        unembed_VD = self.lm.model.lm_head.weight
        for rows in position_N.split(LOGIT_ROWS):
            both = (again_ND[rows - 1], clean.hidden_STD[0, rows])
            again, own = (F.log_softmax(h @ unembed_VD.T, dim=-1) for h in both)
            off = float((own.exp() * (own - again)).sum(-1).abs().max())
            if not off <= TOLERANCE:
                raise CheckFailure(
                    f"Taking nothing out at {self.site} changes a prediction of `{self.lm.name}` "
                    f"by {off:.1e} nats, which must be under {TOLERANCE:.0e}: no ablation is "
                    "reported. The model's blocks are not those of a GPT-2."
                )


def _effects(p_NV: Tensor, change_NV: Tensor, target_N: Tensor) -> Tensor:
    """KL and ΔCE (2, N) float64 when logits change by δ, which is overwritten:

        log Σ p exp δ − Σ p δ        log Σ p exp δ − δ_target

    as log1p Σ p expm1 δ, so that small changes are exact to their own size.
    """
    mean_N = torch.linalg.vecdot(p_NV, change_NV).double()
    of_target_N = change_NV.gather(1, target_N[:, None])[:, 0].double()
    largest_N = change_NV.amax(1)
    normaliser_N = torch.empty_like(mean_N)
    large_N = largest_N > LARGE
    if bool(large_N.any()):  # exp δ would overflow; 1 is nothing beside it
        normaliser_N[large_N] = (p_NV[large_N].log() + change_NV[large_N]).double().logsumexp(1)
    small_N = ~large_N
    moved_N = torch.linalg.vecdot(p_NV, change_NV.expm1_()).double()
    normaliser_N[small_N] = moved_N[small_N].log1p()
    return torch.stack([normaliser_N - mean_N, normaliser_N - of_target_N])
