"""Stage export: the feature dictionary as one HDF5 file."""

from typing import Any

from pipelines.begin import Begin, nothing
from pipelines.config import RunConfig
from pipelines.results import require_sums
from sae.io.hdf5 import export_dictionary


def run(config: RunConfig, name: str, begin: Begin = nothing) -> dict[str, Any]:
    """Writes `export/<name>.h5`; opening the index finds any file that is not what was written."""
    folder = config.folder / "export"
    require_sums(folder)
    path = export_dictionary(
        config.folder / "features" / name,
        config.coder_folder(name),
        folder / f"{name}.h5",
        features=config.export.features,
        before_replacing=begin,
    )
    return {"bytes": path.stat().st_size}
