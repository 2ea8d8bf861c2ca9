"""Better codes than the encoder's, at inference, for any coder: what amortisation costs.

    refit      the encoder's latents, their activations by least squares
    pursue     latents and activations both, by orthogonal matching pursuit

An encoder gives its codes in one product (amortised inference). On the same dictionary with the
same number of latents, the error of its own codes, of refitted ones and of pursued ones say how
much is lost in the amounts and how much in the choice. Both work on rows in chunks: nothing of
(B, F), (B, K, D) or (B, K, K) exists for more than a chunk.
"""

import torch
from torch import Tensor

from sae.base.devices import float64_device, in_float64
from sae.base.errors import UserError
from sae.coders.contract import Coder
from sae.coders.nonnegative import solve_nonnegative, solve_spd
from sae.kernels import Codes, Support, chunks


@torch.no_grad()
def refit(
    coder: Coder,
    codes: Codes,
    target_BD: Tensor,
    x_BD: Tensor | None = None,
    *,
    nonnegative: bool = True,
) -> Codes:
    """The same support, with the activations that bring `coder.decode` closest to the target.

    `target_BD` is what the decoder should give: the coder's input, for an autoencoder. `x_BD` is
    that input, where the coder has a skip connection. Entries whose activation becomes 0 stay in
    the support.
    """
    wanted_BD = target_BD.to(coder.W_dec_FD.dtype) - coder.without_codes(x_BD)
    return least_squares(wanted_BD, coder.W_dec_FD, codes.support, nonnegative=nonnegative)


@torch.no_grad()
def pursue(
    coder: Coder,
    target_BD: Tensor,
    k: int,
    x_BD: Tensor | None = None,
    *,
    tolerance: float = 0.0,
    nonnegative: bool = True,
) -> Codes:
    """Codes of at most `k` latents by orthogonal matching pursuit on the coder's dictionary.

    `x_BD` is the coder's input, where it has a skip connection.
    """
    wanted_BD = target_BD.to(coder.W_dec_FD.dtype) - coder.without_codes(x_BD)
    return orthogonal_matching_pursuit(
        wanted_BD, coder.W_dec_FD, k, tolerance=tolerance, nonnegative=nonnegative
    )


@torch.no_grad()
def least_squares(
    x_BD: Tensor, W_FD: Tensor, support: Support, *, nonnegative: bool = False
) -> Codes:
    """argmin_f ‖x_b − Σ_i f_i W[i]‖² over f on the support of row b (and f ≥ 0).

    Solved in float64; where a support's rows of W are linearly dependent, the solution of least
    norm (with `nonnegative`, one of the solutions).
    """
    _check(x_BD, W_FD)
    counts_B = support.offsets_B1.diff()
    widest = int(counts_B.max()) if support.rows else 0
    if widest == 0:
        return Codes(x_BD.new_zeros(0), support)
    indices_BK = Codes(support.indices_N, support).acts_BK  # padded with latent 0
    used_BK = torch.arange(widest, device=x_BD.device) < counts_B[:, None]
    solve = solve_nonnegative if nonnegative else solve_spd
    acts = []
    size = _rows(widest * max(widest, W_FD.shape[1]))
    for rows in torch.arange(support.rows, device=x_BD.device).split(size):
        atoms_BKD = in_float64(W_FD[indices_BK[rows]])
        used = used_BK[rows].to(atoms_BKD.device)
        atoms_BKD = atoms_BKD * used[..., None]
        gram = atoms_BKD @ atoms_BKD.mT
        gram.diagonal(dim1=-2, dim2=-1).add_((~used).double())  # padding solves itself, to 0
        target_BK = (atoms_BKD @ in_float64(x_BD[rows])[..., None])[..., 0]
        acts.append(solve(gram, target_BK)[used])
    return Codes(torch.cat(acts).to(x_BD.dtype).to(x_BD.device), support)


@torch.no_grad()
def orthogonal_matching_pursuit(
    x_BD: Tensor, W_FD: Tensor, k: int, *, tolerance: float = 0.0, nonnegative: bool = False
) -> Codes:
    """Greedily chosen latents, all activations refitted after each choice.

    Repeat k times, or until ‖r‖ ≤ `tolerance`: choose the latent whose row of W (of any norm)
    has the largest |cosine| with the residual r; then r = x − the best fit on all that are
    chosen. With `nonnegative`: the largest positive cosine, the best fit with f ≥ 0
    (Bruckstein, Elad & Zibulevsky 2008), which ends when no cosine is positive.

    Batch-OMP's progressive Cholesky factors (Rubinstein, Zibulevsky & Elad 2008) keep a choice at
    one product over the dictionary. Its precomputed W Wᵀ is left out: it is (F, F), and 17 GiB in
    float32 at F = 65,536.
    """
    _check(x_BD, W_FD)
    if not 1 <= k <= len(W_FD):
        raise UserError(f"k is {k}; it must lie between 1 and the dictionary's width, {len(W_FD)}.")
    home, there = x_BD.device, float64_device(x_BD.device)
    x_BD, W_FD = x_BD.to(there), W_FD.to(there)
    norms_F = W_FD.norm(dim=1)
    unit_FD = W_FD / norms_F.clamp_min(torch.finfo(W_FD.dtype).tiny)[:, None]
    k = min(k, W_FD.shape[1]) if not nonnegative else k
    size = _rows(max(len(W_FD), k * max(k, W_FD.shape[1])))
    parts = [_Pursuit(x, unit_FD, k, nonnegative).run(tolerance) for x in x_BD.split(size)]
    indices_BK, acts_BK, used_BK = (torch.cat([part[i] for part in parts]) for i in range(3))
    acts_BK = acts_BK / norms_F[indices_BK].clamp_min(torch.finfo(W_FD.dtype).tiny)
    found = indices_BK, acts_BK.to(x_BD.dtype), used_BK
    indices_BK, acts_BK, used_BK = (part.to(home) for part in found)
    if bool(used_BK.all()):
        return Codes.fixed(acts_BK, indices_BK, len(W_FD))
    used = Support.of_counts(indices_BK[used_BK], used_BK.sum(1), len(W_FD))
    return Codes(acts_BK[used_BK], used)


class _Pursuit:
    """A chunk of rows. A row that has ended goes on with empty slots, which solve to 0."""

    def __init__(self, x_BD: Tensor, unit_FD: Tensor, k: int, nonnegative: bool) -> None:
        rows = len(x_BD)
        self.x_BD, self.unit_FD, self.nonnegative = x_BD, unit_FD, nonnegative
        self.indices_BK = torch.zeros(rows, k, dtype=torch.int64, device=x_BD.device)
        self.used_BK = torch.zeros(rows, k, dtype=torch.bool, device=x_BD.device)
        self.atoms_BKD = x_BD.new_zeros(rows, k, x_BD.shape[1], dtype=torch.float64)
        self.gram_BKK = torch.eye(k, dtype=torch.float64, device=x_BD.device).repeat(rows, 1, 1)
        self.lower_BKK = self.gram_BKK.clone()
        self.target_BK = x_BD.new_zeros(rows, k, dtype=torch.float64)

    def run(self, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """(indices, activations, used), each (B, k)."""
        k = self.indices_BK.shape[1]
        acts_BK = torch.zeros_like(self.target_BK)
        residual_BD = self.x_BD
        going_B = torch.ones(len(self.x_BD), dtype=torch.bool, device=self.x_BD.device)
        for slot in range(k):
            going_B = going_B & (residual_BD.norm(dim=1) > tolerance)
            chosen_B, score_B = self._choose(residual_BD)
            noise = torch.finfo(residual_BD.dtype).eps * 8 * self.x_BD.norm(dim=1)
            going_B = going_B & (score_B > noise)
            going_B = self._add(slot, chosen_B, going_B)
            if not bool(going_B.any()):
                break
            upto = slot + 1
            acts_BK[:, :upto] = self._fit(upto)
            fitted = torch.einsum("bk,bkd->bd", acts_BK[:, :upto], self.atoms_BKD[:, :upto])
            residual_BD = (self.x_BD - fitted).to(self.x_BD.dtype)
        return self.indices_BK, acts_BK, self.used_BK

    def _choose(self, residual_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The latent of largest score of each row, never one that it has; and its score."""
        scores_BF = residual_BD @ self.unit_FD.T
        if not self.nonnegative:
            scores_BF.abs_()
        row, slot = self.used_BK.nonzero(as_tuple=True)
        scores_BF[row, self.indices_BK[row, slot]] = -torch.inf
        best = scores_BF.max(dim=1)
        return best.indices, best.values

    def _add(self, slot: int, chosen_B: Tensor, going_B: Tensor) -> Tensor:
        """Takes the chosen latents in; a row whose choice depends on what it has, ends."""
        atom_BD = self.unit_FD[chosen_B].double()
        cross_Bk = (self.atoms_BKD[:, :slot] @ atom_BD[..., None])[..., 0]
        factor_Bk = torch.linalg.solve_triangular(
            self.lower_BKK[:, :slot, :slot], cross_Bk[..., None], upper=False
        )[..., 0]
        left_B = atom_BD.square().sum(1) - factor_Bk.square().sum(1)
        going_B = going_B & (left_B > torch.finfo(self.x_BD.dtype).eps)
        on = going_B[:, None]
        self.indices_BK[:, slot] = torch.where(going_B, chosen_B, 0)
        self.used_BK[:, slot] = going_B
        self.atoms_BKD[:, slot] = atom_BD * on
        self.gram_BKK[:, slot, :slot] = self.gram_BKK[:, :slot, slot] = cross_Bk * on
        self.gram_BKK[:, slot, slot] = torch.where(going_B, atom_BD.square().sum(1), 1.0)
        self.lower_BKK[:, slot, :slot] = factor_Bk * on
        self.lower_BKK[:, slot, slot] = torch.where(going_B, left_B, 1.0).sqrt()
        self.target_BK[:, slot] = (atom_BD * self.x_BD.double()).sum(1) * going_B
        return going_B

    def _fit(self, upto: int) -> Tensor:
        target = self.target_BK[:, :upto]
        acts_Bk = torch.cholesky_solve(target[..., None], self.lower_BKK[:, :upto, :upto])[..., 0]
        if self.nonnegative:
            negative_B = (acts_Bk < 0).any(1)
            gram = self.gram_BKK[negative_B, :upto, :upto]
            acts_Bk[negative_B] = solve_nonnegative(gram, target[negative_B])
        return acts_Bk


def _check(x_BD: Tensor, W_FD: Tensor) -> None:
    if x_BD.ndim != 2 or x_BD.shape[1] != W_FD.shape[1]:
        raise UserError(
            f"`x_BD` has shape {tuple(x_BD.shape)}; this dictionary writes (rows, {W_FD.shape[1]})."
        )


def _rows(values: int) -> int:
    """How many are solved at once, the largest tensor having so many values for each."""
    return max(1, chunks.SYSTEMS // values)
