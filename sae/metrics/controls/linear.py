"""Linear controls: the best that can be done with K numbers per token and no selection."""

import torch
from torch import Tensor

from sae.coders import Coder, Codes
from sae.metrics.controls.base import TrainData


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

    def decode(self, codes: Codes, x_BD: Tensor | None = None) -> Tensor:
        return codes.acts_BK @ self.W_dec_FD + self.b_dec_D

    def __call__(self, x_BD: Tensor) -> Tensor:
        return self.decode(self.encode(x_BD))


class LinearMap(PCA):
    """ŷ = m_y + W_writeᵀ W_read (x − m_x): PCA where x and y are of two sites."""

    def __init__(
        self, mean_in_D: Tensor, read_KD: Tensor, mean_out_D: Tensor, write_KD: Tensor
    ) -> None:
        super().__init__(mean_out_D, write_KD)
        self.mean_in_D, self.W_read_KD = mean_in_D, read_KD

    def encode(self, x_BD: Tensor) -> Codes:
        acts_BK = (x_BD - self.mean_in_D) @ self.W_read_KD.T
        k = len(self.W_read_KD)
        indices_BK = torch.arange(k, device=x_BD.device).expand(len(x_BD), k)
        return Codes.fixed(acts_BK, indices_BK, k)


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


def fit_linear_map(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> LinearMap:
    """The best linear map of rank `l0`: reduced-rank regression (Izenman 1975).

    A is the least-squares map of x − m_x to y − m_y; V the leading eigenvectors of the covariance
    of what it predicts. V Vᵀ A is the best of rank K. Sums are streamed in float64.
    """
    first_BD = data.some().cpu().double().mean(0)
    count, total_in_D, total_out_D = 0, torch.zeros(coder.d_in), torch.zeros(coder.d_out)
    total_in_D, total_out_D = total_in_D.double(), total_out_D.double()
    square_DD = torch.zeros(coder.d_in, coder.d_in, dtype=torch.float64)
    cross_DO = torch.zeros(coder.d_in, coder.d_out, dtype=torch.float64)
    for given_BD, target_BD in data.pairs():
        x_BD = given_BD.cpu().double() - first_BD
        y_BD = (target_BD - data.mean_D).cpu().double()
        count += len(x_BD)
        total_in_D += x_BD.sum(0)
        total_out_D += y_BD.sum(0)
        square_DD += x_BD.T @ x_BD
        cross_DO += x_BD.T @ y_BD
    mean_in_D, mean_out_D = total_in_D / max(1, count), total_out_D / max(1, count)
    square_DD -= count * torch.outer(mean_in_D, mean_in_D)
    cross_DO -= count * torch.outer(mean_in_D, mean_out_D)
    A_DO = torch.linalg.pinv(square_DD, hermitian=True, rtol=1e-10) @ cross_DO
    _, vectors_OO = torch.linalg.eigh(A_DO.T @ cross_DO)  # eigenvalues ascending
    write_KO = vectors_OO.flip(1)[:, : min(l0, coder.d_out)].T.contiguous()
    like = data.mean_D
    return LinearMap(
        (mean_in_D + first_BD).to(like),
        (write_KO @ A_DO.T).to(like),
        mean_out_D.to(like) + like,
        write_KO.to(like),
    )


def fit_full_linear_map(coder: Coder, data: TrainData, l0: int, seed: int = 0) -> LinearMap:
    """The same without a limit on its rank: all that is linear in the step between the sites."""
    return fit_linear_map(coder, data, coder.d_out, seed)
