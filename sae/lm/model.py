"""A GPT-2 whose activations can be read and replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from sae.base.errors import UserError
from sae.lm.sites import Site, parse_site

Replace = Callable[[Tensor], Tensor]
LOGIT_ROWS = 4096  # rows of the (rows, V) logits that exist at a time while losses are taken


class _EarlyExit(Exception):  # noqa: N818 -- a signal, not an error
    """Leaves the forward pass once the last wanted block has run."""


class LanguageModel:
    """A GPT-2 with its tokenizer, its hash (`sae.lm.load.model_hash`), and access to its sites.

    Every method takes `tokens_ST` (S, T) int64 on any device, and takes no gradients.
    """

    def __init__(
        self, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, name: str, hash: str
    ) -> None:
        self.model, self.tokenizer, self.name, self.hash = model, tokenizer, name, hash
        config = model.config
        self.d_model: int = config.n_embd
        self.d_mlp: int = config.n_inner or 4 * config.n_embd
        self.n_layers: int = config.n_layer
        self.context: int = config.n_positions
        self.vocab_size: int = config.vocab_size
        self.bos_id: int = tokenizer.bos_token_id or 0  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def site(self, name: str) -> Site:
        return parse_site(name, self.n_layers)

    def site_width(self, name: str) -> int:
        return self.site(name).width(self.d_model, self.d_mlp)

    @torch.inference_mode()
    def capture(self, tokens_ST: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Activations (S, T, D) of each site, in one pass that ends with the last wanted block."""
        parsed = {name: self.site(name) for name in sites}
        found: dict[str, Tensor] = {}
        last = max(site.layer for site in parsed.values())
        with ExitStack() as hooks:
            for name, site in parsed.items():

                def keep(x: Tensor, name: str = name) -> None:
                    found[name] = x

                hooks.enter_context(self._hook(site, keep))
            hooks.enter_context(_removing(self._block(last).register_forward_hook(_leave)))
            with suppress(_EarlyExit):
                self.model.transformer(self._check(tokens_ST), use_cache=False)
        return {name: found[name] for name in sites}

    @torch.inference_mode()
    def logits(self, tokens_ST: Tensor) -> Tensor:
        """(S, T, V) float32."""
        return self.model(input_ids=self._check(tokens_ST), use_cache=False).logits.float()

    @torch.inference_mode()
    def token_losses(self, tokens_ST: Tensor) -> Tensor:
        """Cross-entropy (S, T-1) float32, in nats, of `tokens_ST[:, 1:]`."""
        tokens_ST = self._check(tokens_ST)
        hidden = self.model.transformer(tokens_ST, use_cache=False).last_hidden_state[:, :-1]
        targets = tokens_ST[:, 1:].flatten()
        losses = [
            F.cross_entropy(self.model.lm_head(rows).float(), wanted, reduction="none")
            for rows, wanted in zip(
                hidden.flatten(0, 1).split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True
            )
        ]
        return torch.cat(losses).view(len(tokens_ST), -1)

    def loss(self, tokens_ST: Tensor) -> float:
        """Mean cross-entropy in nats."""
        return float(self.token_losses(tokens_ST).double().mean())

    @contextmanager
    def splice(self, site: str, replace: Replace, source: str | None = None) -> Iterator[None]:
        """Replaces the activations at `site` inside the block: x_ND float32 -> (N, D).

        `replace` is a coder or any callable. Position 0 keeps its own activation: it is an
        outlier on which no coder is trained (see docs/architecture.md).
        With `source`, `replace` is given the activations at that site instead, read in the same
        forward pass: so a transcoder takes the place of what lies between the two. Raises
        `UserError` unless the pass reaches `source` before `site`.
        """
        there = self.site(site)
        read: list[Tensor] = []

        def keep(x_STD: Tensor) -> None:
            read[:] = [x_STD]

        def substitute(x_STD: Tensor) -> Tensor:
            given_STD = read.pop() if source else x_STD
            rows = given_STD[:, 1:].reshape(-1, given_STD.shape[-1]).float()
            new = replace(rows).to(x_STD.dtype).view_as(x_STD[:, 1:])
            return torch.cat([x_STD[:, :1], new], dim=1)

        with ExitStack() as hooks:
            if source:
                if self.site(source).when >= there.when:
                    raise UserError(
                        f"`{source}` is not known yet when the model is at `{site}`; a coder can "
                        "only predict what comes after what it reads."
                    )
                hooks.enter_context(self._hook(self.site(source), keep))
            hooks.enter_context(self._hook(there, substitute))
            yield

    def _block(self, layer: int) -> Any:
        return self.model.transformer.h[layer]

    @contextmanager
    def _hook(self, site: Site, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Calls `see(x)` at the site; what it returns, if anything, takes x's place."""
        block = self._block(site.layer)

        def on_input(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            new = see(inputs[0])
            return None if new is None else (new, *inputs[1:])

        def on_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                new = see(output[0])
                return None if new is None else (new, *output[1:])
            return see(output)

        if site.point == "hook_resid_mid":
            with self._hook_mid(block, see):
                yield
            return
        register = {
            "hook_resid_pre": lambda: block.register_forward_pre_hook(on_input),
            "hook_resid_post": lambda: block.register_forward_hook(on_output),
            "hook_attn_out": lambda: block.attn.register_forward_hook(on_output),
            "hook_mlp_out": lambda: block.mlp.register_forward_hook(on_output),
            "mlp.hook_post": lambda: block.mlp.c_proj.register_forward_pre_hook(on_input),
        }[site.point]
        with _removing(register()):
            yield

    @contextmanager
    def _hook_mid(self, block: Any, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """The middle of the stream is no module's output: it is block input + attention output."""
        entered: list[Tensor] = []

        def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            entered[:] = [inputs[0]]

        def leave(_module: nn.Module, _inputs: Any, output: tuple[Any, ...]) -> Any:
            new = see(entered[0] + output[0])
            return None if new is None else (new - entered[0], *output[1:])

        with (
            _removing(block.register_forward_pre_hook(enter)),
            _removing(block.attn.register_forward_hook(leave)),
        ):
            yield

    def _check(self, tokens_ST: Tensor) -> Tensor:
        if tokens_ST.ndim != 2:
            raise UserError(f"`tokens_ST` has shape {tuple(tokens_ST.shape)}; expected (S, T).")
        if tokens_ST.shape[1] > self.context:
            raise UserError(
                f"The rows have {tokens_ST.shape[1]} tokens; the context of `{self.name}` is "
                f"{self.context}: take a shorter `context`."
            )
        return tokens_ST.to(self.device, torch.int64)


def _leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
    raise _EarlyExit


@contextmanager
def _removing(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
