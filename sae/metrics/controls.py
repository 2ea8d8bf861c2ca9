"""Controls: what needs no learning of features, scored by the same pipeline as the coder.

A number that a control reaches too says nothing about the coder. Each control is an object with
a coder's `encode` and `decode`, so that the rest of the pipeline cannot tell them apart; a new
one is a function of (coder, train data, seed) that gives such an object, entered in `CONTROLS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sae.coders import Coder, Codes, make_coder
from sae.metrics.reconstruction import CoderLike
from sae.metrics.sample import Sample

PROBE_ROWS = 8192  # on which the coder's L0 and the random dictionary's scale are found


@dataclass(frozen=True)
class TrainData:
    """What a control may learn from: a sample of the train split at the coder's site."""

    sample: Sample
    site: str
    mean_D: Tensor  # (D,) float32, of the whole train split
    device: torch.device

    def batches(self) -> Iterator[Tensor]:
        """Scored rows x_BD, float32."""
        for batch in self.sample.batches(self.site, self.device):
            yield batch.x_BD[batch.scored_B.to(self.device)]

    def some(self) -> Tensor:
        """A few thousand of them, from all over the sample."""
        few = self.sample.some(max(1, PROBE_ROWS // self.sample.store.context))
        return torch.cat(list(replace(self, sample=few).batches()))


class PCA:
    """x̂ = m + V Vᵀ (x − m): the best linear code of K numbers per token.

    m and V (the K leading eigenvectors of the covariance) come from the train split; the codes
    are signed, and the same K units fire on every token.
    """

    def __init__(self, mean_D: Tensor, components_KD: Tensor) -> None:
        self.b_dec_D, self.W_dec_FD = mean_D, components_KD

    def encode(self, x_BD: Tensor) -> Codes:
        acts_BK = (x_BD - self.b_dec_D) @ self.W_dec_FD.T
        k = len(self.W_dec_FD)
        indices_BK = torch.arange(k, device=x_BD.device).expand(len(x_BD), k)
        return Codes.fixed(acts_BK, indices_BK, k)

    def decode(self, codes: Codes) -> Tensor:
        return codes.acts_BK @ self.W_dec_FD + self.b_dec_D

    def __call__(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD))


def matched_l0(coder: CoderLike, data: TrainData) -> int:
    """The coder's own mean L0 on train rows, rounded: what every control is given."""
    return max(1, round(float(coder.encode(data.some()).l0().double().mean())))


def fit_pca(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> PCA:
    """As many components as the coder has active latents; covariance streamed in float64."""
    width = coder.d_in
    count, total_D = 0, torch.zeros(width, dtype=torch.float64)
    second_DD = torch.zeros(width, width, dtype=torch.float64)
    for x_BD in data.batches():
        centred = (x_BD - data.mean_D).cpu().double()
        count += len(centred)
        total_D += centred.sum(0)
        second_DD += centred.T @ centred
    mean_D = total_D / max(1, count)
    covariance_DD = second_DD / max(1, count) - torch.outer(mean_D, mean_D)
    _, vectors_DD = torch.linalg.eigh(covariance_DD)  # eigenvalues ascending
    components_KD = vectors_DD.flip(1)[:, : min(l0, width)].T.contiguous()
    mean_D = mean_D.to(data.mean_D) + data.mean_D
    return PCA(mean_D, components_KD.to(data.mean_D))


def random_dictionary(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> Coder:
    """A TopK coder that was never trained: same width, same L0, random unit decoder rows.

    The encoder is their transpose on x − m (m the train mean), times one number for the whole
    dictionary: the one that minimises the squared error on train rows. Without it the codes of
    many non-orthogonal rows add up to far too much, and the control would be a straw man.
    """
    control = make_coder("topk", coder.d_in, coder.d_sae, k=min(l0, coder.d_sae))
    control.initialise(data.mean_D.cpu(), torch.Generator().manual_seed(seed))
    control = control.requires_grad_(False).eval().to(data.device)
    with torch.no_grad():
        x_BD = data.some()
        target_BD = (x_BD - control.b_dec_D).double()
        raw_BD = (control(x_BD) - control.b_dec_D).double()
        scale = float((target_BD * raw_BD).sum() / raw_BD.square().sum().clamp_min(1e-30))
        control.W_enc_FD.mul_(scale)
    return control


Fit = Callable[[Coder, TrainData, int, int], CoderLike]
CONTROLS: dict[str, Fit] = {"pca": fit_pca, "random_dictionary": random_dictionary}
