"""Does a coder find the frequencies by which a grokked network adds? Its latents, one by one.

The network (`sae.lm.modular_addition`) has been taken apart by others: it adds by a few *key
frequencies*. Here they are read off its own logits; then, for every latent of a coder, the share
of the Fourier power of its pre-activation and of its activation, over all p² pairs, that is on one
frequency (`sae.metrics.fourier`). All pairs are measured, so these numbers have no sampling error;
intervals of means over latents resample latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.base.devices import in_float64
from sae.coders import Coder
from sae.lm.modular_addition import ModularAddition, check_site
from sae.metrics import fourier
from sae.metrics.ablation import Ablation
from sae.metrics.estimate import INTERVAL, estimate_mean
from sae.metrics.fourier import Floats, Ints

SCHEMA = 2
COVERED = 0.9  # share of its power from which a pre-activation, or activation, is of one frequency
HARMONICS = 4
BEFORE = {"blocks.0.mlp.hook_post": "blocks.0.mlp.hook_pre"}  # sites whose dimensions have theirs


@dataclass(frozen=True)
class LatentFrequencies:
    """Which frequency each of F functions on the grid is of, and how purely.

    `best_F` the frequency with the largest share of the pre-activation's power, `pre_F` that share.
    Of the activation, `act_best_F` the frequency with the largest share, harmonics left out (else
    the frequency's half had as much), and `act_nF` the shares of all n, harmonics included.
    `fires_F` the share of pairs on which it is active; `phase_F` where on the circle it lies.
    """

    best_F: Ints
    pre_F: Floats
    act_best_F: Ints
    act_nF: Floats
    fires_F: Floats
    phase_F: Floats

    @classmethod
    def of(
        cls, pre_GF: npt.NDArray[np.floating], acts_GF: npt.NDArray[np.floating], p: int
    ) -> "LatentFrequencies":
        shares_nF = fourier.frequency_shares(pre_GF, p)
        best_F = fourier.frequencies(p)[shares_nF.argmax(0)]
        fundamental_nF = fourier.frequency_shares(acts_GF, p)
        return cls(
            best_F,
            shares_nF.max(0),
            fourier.frequencies(p)[fundamental_nF.argmax(0)],
            fourier.frequency_shares(acts_GF, p, HARMONICS),
            (acts_GF != 0).mean(0),
            fourier.phases(pre_GF, p, best_F),
        )

    @property
    def alive_F(self) -> npt.NDArray[np.bool_]:
        return self.fires_F > 0

    @property
    def act_F(self) -> Floats:
        """The share of each activation's power on its own frequency and harmonics."""
        return np.asarray(self.act_nF[self.act_best_F - 1, np.arange(len(self.act_best_F))])

    def covering(self, frequency: int) -> Ints:
        """Alive latents whose pre-activation is of this frequency."""
        own_F = (self.best_F == frequency) & (self.pre_F >= COVERED)
        return np.flatnonzero(own_F & self.alive_F)

    def covering_by_activation(self, frequency: int) -> Ints:
        """Alive latents whose activation is of this frequency, whatever their pre-activation."""
        own_F = (self.act_best_F == frequency) & (self.act_F >= COVERED)
        return np.flatnonzero(own_F & self.alive_F)


def addition_report(
    coder: Coder, net: ModularAddition, site: str | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """The whole comparison of a coder's latents with the network's key frequencies, as JSON.

    `site` defaults to the coder's own. See `docs/metrics.md` for the keys. Raises `UserError` if
    the site is not one of the network's.
    """
    site = check_site(site or str(coder.site))
    p = net.p
    x_GD = net.capture(net.grid, site)
    pre_GF, acts_GF = latent_grids(coder, x_GD)
    latents = LatentFrequencies.of(pre_GF, acts_GF, p)
    clean_Gp = net.logits(net.grid).numpy()
    spliced_Gp = net.logits(net.grid, site, coder).numpy()
    key = fourier.key_frequencies(clean_Gp, p)
    rows = [_key_row(coder, net, site, latents, clean_Gp, spliced_Gp, int(k)) for k in key]
    random = random_latents(coder, x_GD, seed)
    return {
        "schema": SCHEMA,
        "site": site,
        "pairs": p * p,
        "interval": {**INTERVAL, "over": "latents"},
        "threshold": COVERED,
        "harmonics": HARMONICS,
        "key_frequencies": rows,
        "summary": summary(latents, key, p, seed),
        "reconstruction": _reconstruction(coder, x_GD, acts_GF),
        "losses": {
            "clean": fourier.progress_losses(clean_Gp, p, key),
            "spliced": fourier.progress_losses(spliced_Gp, p, key),
        },
        "accuracy": {"clean": _accuracy(clean_Gp, p), "spliced": _accuracy(spliced_Gp, p)},
        "controls": {
            "random_directions": summary(random, key, p, seed),
            "dimensions": summary(dimensions(net, site, x_GD), key, p, seed),
        },
        "latents": {
            "frequency": latents.best_F.tolist(),
            "preactivation_share": latents.pre_F.tolist(),
            "activation_frequency": latents.act_best_F.tolist(),
            "activation_share": latents.act_F.tolist(),
            "density": latents.fires_F.tolist(),
            "phase": latents.phase_F.tolist(),
        },
    }


def summary(latents: LatentFrequencies, key: Ints, p: int, seed: int) -> dict[str, Any]:
    """Coverage of the key frequencies, and how concentrated alive latents are on one frequency."""
    alive = latents.alive_F
    on_key = np.isin(latents.best_F, key)

    def coverage(covering: Callable[[int], Ints]) -> float:
        return sum(len(covering(k)) > 0 for k in key.tolist()) / max(1, len(key))

    return {
        "coverage": coverage(latents.covering),
        "coverage_by_activation": coverage(latents.covering_by_activation),
        "alive": int(alive.sum()),
        "preactivation": estimate_mean(latents.pre_F[alive], p * p, seed),
        "activation": estimate_mean(latents.act_F[alive], p * p, seed),
        "above_threshold": estimate_mean((latents.pre_F[alive] >= COVERED) * 1.0, p * p, seed),
        "on_key_frequency": estimate_mean(on_key[alive] * 1.0, p * p, seed),
    }


@torch.no_grad()
def latent_grids(
    coder: Coder, x_GD: Tensor
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """(G, F) pre-activations (x − centre) W_encᵀ + b_enc, and activations, of G rows."""
    pre_GF = (x_GD - coder.input_centre()) @ coder.W_enc_FD.T + coder.b_enc_F
    return pre_GF.numpy(), coder.encode(x_GD).dense().numpy()


def random_latents(coder: Coder, x_GD: Tensor, seed: int) -> LatentFrequencies:
    """As many random directions, each firing as often as a latent of the coder does on average."""
    rows_FD = torch.randn(coder.W_enc_FD.shape, generator=torch.Generator().manual_seed(seed))
    pre_GF = ((x_GD - x_GD.mean(0)) @ rows_FD.T).numpy()
    density = float(in_float64(coder.encode(x_GD).l0()).mean()) / coder.d_sae
    threshold_F = np.quantile(pre_GF, 1 - density, axis=0)
    acts_GF = np.where(pre_GF > threshold_F, pre_GF, 0.0)
    p = round(len(x_GD) ** 0.5)
    return LatentFrequencies.of(pre_GF, acts_GF, p)


def dimensions(net: ModularAddition, site: str, x_GD: Tensor) -> LatentFrequencies:
    """The site's own dimensions in the place of latents.

    Of `mlp.hook_post` they are the neurons, and have pre-activations as latents have, before
    their ReLU: a half-wave could never pass for one frequency. Elsewhere x stands for both.
    """
    pre_GD = net.capture(net.grid, BEFORE[site]) if site in BEFORE else x_GD
    return LatentFrequencies.of(pre_GD.numpy(), x_GD.numpy(), net.p)


def _key_row(
    coder: Coder,
    net: ModularAddition,
    site: str,
    latents: LatentFrequencies,
    clean_Gp: npt.NDArray[np.floating],
    spliced_Gp: npt.NDArray[np.floating],
    k: int,
) -> dict[str, Any]:
    """One line of the table: a key frequency, the latents that are of it, and what they do."""
    p = net.p
    found = latents.covering(k)
    own = np.flatnonzero((latents.best_F == k) & latents.alive_F)
    own_act = np.flatnonzero((latents.act_best_F == k) & latents.alive_F)
    ablated_Gp = net.logits(net.grid, site, Ablation(coder, found)).numpy()
    power = {
        name: float(_wave_power(logits, p, k))
        for name, logits in (("clean", clean_Gp), ("spliced", spliced_Gp), ("ablated", ablated_Gp))
    }
    return {
        "frequency": k,
        "logit_share": float(fourier.logit_shares(clean_Gp, p)[k - 1]),
        "latents": len(found),
        "latents_by_activation": len(latents.covering_by_activation(k)),
        "best_preactivation_share": float(latents.pre_F[own].max()) if len(own) else 0.0,
        "best_activation_share": float(latents.act_F[own_act].max()) if len(own_act) else 0.0,
        "mean_activation_share": float(latents.act_nF[k - 1, found].mean()) if len(found) else 0.0,
        "largest_phase_gap": fourier.largest_gap(latents.phase_F[found]),
        "logit_power_spliced": power["spliced"] / power["clean"],
        "logit_power_ablated": power["ablated"] / power["clean"],
        "loss_ablated": fourier.grid_loss(ablated_Gp, p),
    }


def _wave_power(logits_Gp: npt.NDArray[np.floating], p: int, k: int) -> float:
    """Power of the logits on cos and sin of k(a + b), over all answers."""
    return float(np.square(fourier.component(logits_Gp, p, np.array([k]))).mean())


def _reconstruction(
    coder: Coder, x_GD: Tensor, acts_GF: npt.NDArray[np.floating]
) -> dict[str, float]:
    with torch.no_grad():
        error = in_float64(x_GD - coder(x_GD))
    centred = in_float64(x_GD) - in_float64(x_GD).mean(0)
    return {
        "ev": float(1 - error.square().sum() / centred.square().sum()),
        "l0": float((acts_GF != 0).sum(1).mean()),
        "alive": float((acts_GF != 0).any(0).mean()),
    }


def _accuracy(logits_Gp: npt.NDArray[np.floating], p: int) -> float:
    answer = np.add.outer(np.arange(p), np.arange(p)).ravel() % p
    return float((logits_Gp.argmax(1) == answer).mean())
