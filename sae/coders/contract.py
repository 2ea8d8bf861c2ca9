"""What every coder is: an encoder and a decoder over one dictionary, and a training forward.

    encode:  codes = σ((x − b_dec) W_encᵀ + b_enc)      only σ differs between architectures
    decode:  x̂ = Σ_i codes_i · W_dec[i] + b_dec

Weights are kept latent-major, (F, D): a latent's encoder and decoder are one contiguous row
each, which is what sparse kernels read and what per-row optimisers write.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.kernels import Codes, Kernels, Support, chunks, kernels_for


class Forward:
    """One training forward pass: the reconstruction, its codes, and what the loss adds to MSE.

    `penalty` is a scalar in the units of ‖x − x̂‖² / D.
    """

    def __init__(self, x_hat_BD: Tensor, codes: Codes, penalty: Tensor | None = None) -> None:
        self.x_hat_BD, self.codes, self.penalty = x_hat_BD, codes, penalty

    def error(self, y_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(Σ ‖y − x̂‖² with gradients, y − x̂ without)."""
        residual_BD = y_BD - self.x_hat_BD
        return residual_BD.square().sum(), residual_BD.detach()


class SparseForward(Forward):
    """A forward pass whose x̂ = Σ codes · W_dec + b_dec is not needed for the error.

    It is decoded when it is first asked for, by the weights of that moment: who wants it asks
    before they are updated, or takes the residual of `error`, which never changes.
    """

    def __init__(
        self, coder: "Coder", codes: Codes, kernels: Kernels, penalty: Tensor | None = None
    ) -> None:
        self.coder, self.kernels = coder, kernels
        self.codes, self.penalty = codes, penalty

    @cached_property
    def x_hat_BD(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        acts_N, support = self.codes.acts_N, self.codes.support
        return self.kernels.decode(acts_N, self.coder.W_dec_FD, support) + self.coder.b_dec_D

    def error(self, y_BD: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.coder.W_dec_FD, self.coder.b_dec_D
        return self.kernels.decode_error(self.codes.acts_N, *weights, y_BD, self.codes.support)


class Coder(nn.Module, ABC):
    """A sparse coder of activations x (B, D) with F latents.

    `architecture` is the name under which `make_coder` finds it. A coder in training sees
    activations in normalised units; `folded` gives the one that takes them raw.
    """

    architecture: ClassVar[str]
    hyperparameters: ClassVar[tuple[str, ...]] = ()  # names of constructor arguments to save
    uses_auxk: ClassVar[bool] = False
    centres_input: ClassVar[bool] = True  # b_dec is subtracted from what is encoded
    unit_decoder: ClassVar[bool] = True  # decoder rows are held at unit norm while training
    resamples: ClassVar[bool] = False  # dead latents may be resampled (training/resampling.py)
    dense_tensors: ClassVar[int] = 0  # (B, F) ones that a step holds at once (coders/entries.py)
    progress: float = 1.0  # share of the training that is done, set by the trainer

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        if d_in < 1 or d_sae < 1:
            raise UserError(f"A coder needs positive widths; got d_in={d_in}, d_sae={d_sae}.")
        self.d_in, self.d_sae, self.d_out = d_in, d_sae, d_in
        self.W_enc_FD = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_enc_F = nn.Parameter(torch.zeros(d_sae))
        self.W_dec_FD = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec_D = nn.Parameter(torch.zeros(d_in))
        self.metadata: dict[str, Any] = {}

    # -- what an architecture defines -------------------------------------------------------

    @abstractmethod
    def select(self, centred_BD: Tensor) -> Support:
        """The latents that are active at inference, by full-precision scores. No gradient."""

    @abstractmethod
    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        """Forward pass with gradients; `candidates` is the precision that selection may use."""

    def for_inference(self) -> "Coder":
        """The coder that is saved: itself, unless training and inference differ.

        It may share weights with this one; `folded` copies.
        """
        return self

    def scale_units(self, factor: float) -> None:
        """Multiplies everything measured in units of activations (thresholds) by `factor`."""

    def constrain(self) -> None:
        """Brings parameters back into their domain; called after every update."""

    def touched(self, rows: int) -> int:
        """The most latents of which gradients hold a row, in a training step on so many rows."""
        return self.d_sae

    def gradient_values(self, rows: int) -> int:
        """Values of the gradients of both matrices that such a step holds at its peak."""
        return self.touched(rows) * (self.d_in + self.d_out)

    def dense_values(self, rows: int) -> int:
        """Values of (rows, F) tensors that such a step holds at its peak on a CPU: `dense_tensors`
        whole ones, or the scores of one chunk among which the k largest are looked for."""
        if self.dense_tensors:
            return self.dense_tensors * rows * self.d_sae
        return min(rows, chunks.cpu_score_rows(self.d_sae)) * self.d_sae

    def row_penalty(self, codes: Codes) -> Tensor:
        """(B,) what the loss adds to each row's ‖x − x̂‖², before the division by D."""
        return torch.zeros(codes.rows, dtype=codes.acts_N.dtype, device=codes.acts_N.device)

    # -- what all share ---------------------------------------------------------------------

    def encode(self, x_BD: Tensor) -> Codes:
        """Codes of activations (B, D), in the coder's dtype."""
        if x_BD.ndim != 2 or x_BD.shape[1] != self.d_in:
            raise UserError(
                f"`x_BD` has shape {tuple(x_BD.shape)}; this coder reads (rows, {self.d_in})."
            )
        return self.infer(x_BD.to(self.W_enc_FD.dtype))

    def infer(self, x_BD: Tensor) -> Codes:
        """What `encode` returns for activations of the right shape and dtype.

        Architectures whose codes are not ReLU(pre-activation) at their support define it anew.
        """
        kernels = kernels_for(self.W_enc_FD)
        return self._codes_at(x_BD, self.select(x_BD - self.input_centre()), kernels)

    @property
    def site(self) -> str | None:
        """Where it reads, as its metadata say."""
        return self.metadata.get("hook_name")

    @property
    def target_site(self) -> str | None:
        """Where what it predicts belongs: its own site, unless it is a transcoder."""
        return self.metadata.get("hook_name_out") or self.site

    def input_centre(self) -> Tensor:
        """(d_in,): what is subtracted from activations before they are encoded."""
        return self.b_dec_D

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        """Reconstruction (B, D). `x_BD`, the coder's input, matters to skip connections alone.

        Raises `UserError` for codes of another width.
        """
        if codes.width != self.d_sae:
            raise UserError(
                f"These codes are of {codes.width} latents, and the coder has {self.d_sae}; give "
                "it codes of its own."
            )
        kernels = kernels_for(self.W_dec_FD)
        return kernels.decode(codes.acts_N, self.W_dec_FD, codes.support) + self.b_dec_D

    def without_codes(self, x_BD: Tensor | None = None) -> Tensor:
        """What the decoder gives when no latent fires: b_dec (D,), and a skip connection's part."""
        return self.b_dec_D

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD), x_BD)

    def initialise(self, mean_D: Tensor, generator: torch.Generator) -> None:
        """Unit decoder rows in random directions, the encoder as their transpose, b_dec the mean.

        Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.2 and appendix A.
        """
        with torch.no_grad():
            rows = torch.randn(self.d_sae, self.d_in, generator=generator)
            self.W_dec_FD.copy_(F.normalize(rows, dim=1))
            self.W_enc_FD.copy_(self.W_dec_FD)
            self.b_enc_F.zero_()
            self.b_dec_D.copy_(mean_D)

    def folded(self, scale: float, *, borrow: bool = False) -> "Coder":
        """The coder for raw x, given that this one was trained on `scale * x`.

        With all of b_enc, b_dec and thresholds divided by `scale`, pre-activations are those of
        training divided by `scale`, and so is the reconstruction: exact, decoder rows stay of
        unit norm, and activations come in the units of the residual stream.

        `borrow`: matrices that folding leaves as they are stay this coder's own, so that a coder
        that fills the memory can be saved; it must not go on training while they are lent.
        """
        coder = self.for_inference()
        matrices = (coder.W_enc_FD, coder.W_dec_FD) if borrow else ()
        lent: dict[int, Any] = {id(w): nn.Parameter(w.detach()) for w in matrices}
        out = copy.deepcopy(coder, lent)
        with torch.no_grad():
            out.b_enc_F /= scale
            out.b_dec_D /= scale
        out.scale_units(1 / scale)
        return out.requires_grad_(False).eval()

    def saved_tensors(self) -> dict[str, Tensor]:
        """Tensors in the layout of SAELens: encoder [d_in, d_sae], decoder [d_sae, d_in].

        The encoder is a transposed view, so that who writes it needs no second one in memory.
        """
        return {
            "W_enc": self.W_enc_FD.detach().T,
            "b_enc": self.b_enc_F.detach().contiguous(),
            "W_dec": self.W_dec_FD.detach().contiguous(),
            "b_dec": self.b_dec_D.detach().contiguous(),
        }

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        with torch.no_grad():
            self.W_enc_FD.copy_(tensors["W_enc"].T)
            self.b_enc_F.copy_(tensors["b_enc"])
            self.W_dec_FD.copy_(tensors["W_dec"])
            self.b_dec_D.copy_(tensors["b_dec"])
        return self

    def share_weights(self, other: "Coder") -> Self:
        """Takes another coder's encoder, decoder and biases for its own, without a copy."""
        for name in ("W_enc_FD", "b_enc_F", "W_dec_FD", "b_dec_D"):
            setattr(self, name, nn.Parameter(getattr(other, name).detach()))
        self.metadata = dict(other.metadata)
        return self

    def _codes_at(self, x_BD: Tensor, support: Support, kernels: Kernels) -> Codes:
        centre_D = self.input_centre()
        pre_N = kernels.encode_at(
            x_BD, centre_D, self.W_enc_FD, self.b_enc_F, support, support.pre_N
        )
        return Codes(torch.relu(pre_N), support)

    def _sparse_forward(self, x_BD: Tensor, support: Support, kernels: Kernels) -> Forward:
        return SparseForward(self, self._codes_at(x_BD, support, kernels), kernels)


def check_k(k: int, d_sae: int) -> None:
    if not 1 <= k <= d_sae:
        raise UserError(f"k is {k}; it must lie between 1 and the dictionary's width, {d_sae}.")
