"""Stage scorecard: what each feature is worth, beside what its index already says of it."""

from typing import Any

import numpy as np

from pipelines.alike import other_seeds
from pipelines.begin import Begin, nothing
from pipelines.config import RunConfig
from pipelines.progress import steps_progress
from sae.base.commands import command
from sae.base.errors import CheckFailure, UserError
from sae.base.sums import unseal
from sae.coders import coder_hash, load_coder
from sae.features import FeatureIndex
from sae.features.layout import SCORECARD
from sae.features.scorecard import read_scorecard
from sae.features.scorecard_builder import build_scorecard
from sae.lm import load_lm


def run(config: RunConfig, name: str, begin: Begin = nothing) -> dict[str, Any]:
    """Writes `features/<name>/scorecard.parquet`. The older one, which may be damaged, goes when
    the new one is measured, or when a check fails."""
    folder = config.folder / "features" / name
    index = FeatureIndex.open(folder, scorecard=False)
    if coder_hash(config.coder_folder(name)) != index.meta["coder_hash"]:
        raise UserError(
            f"{folder} was built from other weights than {config.coder_folder(name)} holds; run "
            f"`{command('index', config.folder)}` first."
        )
    coder = load_coder(config.coder_folder(name))
    others = [other.name for other in other_seeds(config.train.coders, name)]
    lm = load_lm(config.model.name, config.model.device, "float32")

    def withdraw() -> None:
        begin()
        unseal(folder, [SCORECARD])

    try:
        with steps_progress(f"scorecard {name}") as report:
            build_scorecard(
                index,
                coder.to(lm.device),
                lm,
                [load_coder(config.coder_folder(other)) for other in others],
                tokens=config.scorecard.tokens,
                seed=config.scorecard.seed,
                names=others,
                progress=report,
                before_writing=withdraw,
            )
    except CheckFailure:
        withdraw()
        raise
    return _facts(index)


def _facts(index: FeatureIndex) -> dict[str, Any]:
    """For the manifest: how many features were measured, and the mean effect of one."""
    found = read_scorecard(index)
    if found is None:
        raise UserError(f"{index.folder / SCORECARD} is gone; give the same command again.")
    kl_F = found["ablation_kl"].to_numpy(np.float64)
    known = np.isfinite(kl_F)
    mean = float(kl_F[known].mean()) if known.any() else None
    return {"features": len(found), "ablated": int(known.sum()), "mean_ablation_kl": mean}
