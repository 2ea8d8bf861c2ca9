"""Dictionaries that nothing was learned into: random, sampled, shuffled, or the axes themselves.

All have a coder's methods, so that the pipeline cannot tell them from trained ones. All but the
last are given the one factor on their codes that minimises the squared error on train rows: without
it the codes of many rows that are not orthogonal add up to far too much: straw men.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.coders import Coder, Codes, make_coder
from sae.metrics.controls.base import TrainData, best_scale
from sae.metrics.other_decoder import OtherDecoder, shuffled


def random_dictionary(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Coder:
    """A TopK coder that was never trained: same width, same L0, random unit decoder rows.

    The encoder is their transpose on x − m (m the train mean), times one number.
    """
    control = make_coder("topk", coder.d_in, coder.d_sae, k=min(l0, coder.d_sae))
    control.initialise(data.mean_D.cpu(), torch.Generator().manual_seed(seed))
    return _scaled_encoder(control, data)


def train_rows(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Coder:
    """The same with as many train activations, less their mean, as decoder rows.

    Such a dictionary lies where the data lie, and has learned nothing else.
    """
    control = make_coder("topk", coder.d_in, coder.d_sae, k=min(l0, coder.d_sae))
    control.initialise(data.mean_D.cpu(), torch.Generator().manual_seed(seed))
    rows_BD = (data.spread(2 * coder.d_sae, seed) - data.mean_D).cpu()
    order = torch.randperm(len(rows_BD), generator=torch.Generator().manual_seed(seed))
    chosen_FD = F.normalize(rows_BD[order[: coder.d_sae]], dim=1)
    with torch.no_grad():  # where there are fewer rows than latents, the rest stays random
        control.W_dec_FD[: len(chosen_FD)] = chosen_FD
        control.W_enc_FD.copy_(control.W_dec_FD)
    return _scaled_encoder(control, data)


def _scaled_encoder(control: Coder, data: TrainData) -> Coder:
    control = control.requires_grad_(False).eval().to(data.device)
    x_BD = data.some()
    base_D = control.b_dec_D
    control.W_enc_FD.mul_(best_scale(x_BD - base_D, control(x_BD) - base_D))
    return control


@torch.no_grad()
def shuffled_decoder(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> OtherDecoder:
    """The coder's codes with its decoder rows permuted: each latent writes another's direction."""
    x_BD, wanted_BD = data.some_pairs()
    rows_FD = shuffled(coder, seed)
    base_BD = coder.without_codes(x_BD)
    found_BD = OtherDecoder(coder, rows_FD)(x_BD) - base_BD
    return OtherDecoder(coder, rows_FD * best_scale(wanted_BD - base_BD, found_BD))


class Basis:
    """x̂ = m + Σ of the K coordinates of x − m, in the rows of an invertible map, that write most.

    Codes are signed. `read_FD` gives the coordinates, `write_FD` their directions.
    """

    def __init__(self, mean_D: Tensor, read_FD: Tensor, write_FD: Tensor, k: int) -> None:
        self.b_dec_D, self.W_read_FD, self.W_dec_FD = mean_D, read_FD, write_FD
        self.k = min(k, len(write_FD))
        self._norms_F = write_FD.norm(dim=1)

    def encode(self, x_BD: Tensor) -> Codes:
        acts_BF = (x_BD - self.b_dec_D) @ self.W_read_FD.T
        indices_BK = (acts_BF.abs() * self._norms_F).topk(self.k, dim=1).indices
        return Codes.fixed(acts_BF.gather(1, indices_BK), indices_BK, len(self.W_dec_FD))

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        return codes.dense() @ self.W_dec_FD + self.b_dec_D  # as many columns as dimensions

    def __call__(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD))


def raw_neurons(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Basis:
    """The site's own axes: the K coordinates of x furthest from their mean, all others the mean."""
    eye_DD = torch.eye(coder.d_in, device=data.device)
    return Basis(data.mean_D, eye_DD, eye_DD, l0)
