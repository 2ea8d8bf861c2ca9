"""The rest of the language model, from a site to the final hidden states.

All methods that are spliced in at a site share everything before it. For a residual site the
blocks after it are run on the replaced stream; for the others, and for attention that needs
an explicit mask, the whole model is run with the splice in place. Both give the same numbers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.base.errors import UserError

if TYPE_CHECKING:
    from sae.lm import LanguageModel

Replace = Callable[[Tensor], Tensor]


class Continuation:
    """Final hidden states with anything spliced in at `site`.

        rest = Continuation(lm, site)              # source=...: what the coder reads instead
        x_STD = rest.start(tokens_ST)
        hidden_STD = rest.finish(tokens_ST, x_STD, coder)   # None: nothing spliced, the clean run

    Raises `UserError` unless the model is in float32: losses that differ by 1e-5 nats mean
    something only there.
    """

    def __init__(self, lm: "LanguageModel", site: str, source: str | None = None) -> None:
        if lm.dtype != torch.float32:
            raise UserError(
                f"Losses are compared in float32, but `{lm.name}` was loaded as {lm.dtype}; "
                'load it with `load_lm(..., dtype="float32")`.'
            )
        self.lm, self.site = lm, site
        self.source = None if source == site else source
        parsed = lm.site(site)
        offset = {"hook_resid_pre": 0, "hook_resid_post": 1}.get(parsed.point)
        # Only the fused attention is causal by itself when it is given no mask.
        fused = getattr(lm.model.config, "_attn_implementation", None) == "sdpa"
        self._next_block: int | None = None
        if offset is not None and fused and self.source is None:
            self._next_block = parsed.layer + offset

    @property
    def replaces_everything(self) -> bool:
        """Whether all that the later blocks see comes through the site (a residual stream)."""
        return self._next_block is not None

    @torch.inference_mode()
    def start(self, tokens_ST: Tensor) -> Tensor:
        """Activations (S, T, D) at the site."""
        return self.lm.capture(tokens_ST, [self.site])[self.site]

    @torch.inference_mode()
    def finish(self, tokens_ST: Tensor, x_STD: Tensor, replace: Replace | None) -> Tensor:
        """Final hidden states (S, T, d_model), after the last layer norm."""
        if self._next_block is not None:
            stream_STD = x_STD if replace is None else spliced(x_STD, replace)
            for block in list(self.lm.model.transformer.h)[self._next_block :]:
                out = block(stream_STD)
                stream_STD = out[0] if isinstance(out, tuple) else out
            return self.lm.model.transformer.ln_f(stream_STD)
        if replace is None:
            return self._whole(tokens_ST)
        with self.lm.splice(self.site, replace, self.source):
            return self._whole(tokens_ST)

    def _whole(self, tokens_ST: Tensor) -> Tensor:
        return self.lm.model.transformer(
            tokens_ST.to(self.lm.device), use_cache=False
        ).last_hidden_state


def constant(value_D: Tensor) -> Replace:
    """Ablation: the same vector in the place of every activation."""
    return lambda x_BD: value_D.to(x_BD).expand(len(x_BD), -1)


def spliced(x_STD: Tensor, replace: Replace) -> Tensor:
    """x with everything but position 0 replaced, as `LanguageModel.splice` does."""
    rows_ND = x_STD[:, 1:].reshape(-1, x_STD.shape[-1])
    new_STD = replace(rows_ND).to(x_STD.dtype).view_as(x_STD[:, 1:])
    return torch.cat([x_STD[:, :1], new_STD], dim=1)
