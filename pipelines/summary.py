"""The table that a run ends with, and `sae info`."""

from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.config import RunConfig
from pipelines.manifest import Manifest
from pipelines.progress import console, human_count
from sae.base.errors import UserError
from sae.base.files import human_bytes, read_json

SHOWN = (
    ("EV", "ev", "{:.3f}"),
    ("L0", "l0", "{:.1f}"),
    ("ΔCE (nats)", "delta_ce", "{:.3f}"),
    ("recovered", "ce_recovered_mean", "{:.3f}"),
    ("alive", "alive", "{:.3f}"),
    ("FVU", "fvu", "{:.3f}"),
)


def print_summary(config: RunConfig) -> None:
    """One row per coder, its controls below it: value and 95 % interval."""
    table = Table(title=str(config.folder), title_justify="left", header_style="bold")
    table.add_column("coder")
    for heading, _, _ in SHOWN:
        table.add_column(heading, justify="right")
    for coder in config.train.coders:
        path = config.folder / "evaluation" / f"{coder.name}.json"
        if not path.exists():
            continue
        found = read_json(path)
        table.add_row(coder.name, *_cells(found["metrics"], interval=True))
        for name, metrics in found["controls"].items():
            table.add_row(f"  {name}", *_cells(metrics), style="dim")
    console.print(table)
    for label, path in _products(config):
        console.print(f"{label:<10} {path}")
    console.print(f"next       [bold]sae browse {config.folder}[/]")


def _cells(metrics: dict[str, Any], interval: bool = False) -> list[str]:
    cells = []
    for _, key, form in SHOWN:
        metric = metrics.get(key)
        if metric is None:
            cells.append("-")
            continue
        text = form.format(metric["value"])
        if interval and metric.get("low") is not None:
            text += f" [{form.format(metric['low'])}, {form.format(metric['high'])}]"
        cells.append(text)
    return cells


def _products(config: RunConfig) -> list[tuple[str, Path]]:
    candidates = [("store", config.store), ("report", config.folder / "evaluation" / "report.html")]
    for coder in config.train.coders:
        candidates.append(("coder", config.coder_folder(coder.name)))
        candidates.append(("export", config.folder / "export" / f"{coder.name}.h5"))
    return [(label, path) for label, path in candidates if path.exists()]


def print_info(path: Path) -> None:
    """What a store, a coder, a feature index, an export or a run folder is, in a few lines."""
    for known, show in (
        (path / "manifest.json", _run_info),
        (path / "zarr.json", _store_info),
        (path / "cfg.json", _coder_info),
        (path / "index.json", _index_info),
    ):
        if known.exists():
            for label, value in show(path):
                console.print(f"[bold]{label:<14}[/]{value}")
            return
    if path.suffix == ".h5" and path.exists():
        import h5py

        with h5py.File(path) as file:
            for label, value in file.attrs.items():
                console.print(f"[bold]{label:<14}[/]{value}")
        return
    raise UserError(
        f"{path} is no run folder, activation store, coder, feature index or export of Loupe."
    )


def _run_info(path: Path) -> list[tuple[str, Any]]:
    items = Manifest.open(path).items
    return [("run", path)] + [
        (name, f"{item['finished']}, {item['seconds']:.1f} s") for name, item in items.items()
    ]


def _store_info(path: Path) -> list[tuple[str, Any]]:
    from sae.store import ActivationStore

    store = ActivationStore.open(path)
    lines: list[tuple[str, Any]] = [
        ("store", path),
        ("model", f"{store.spec.model['name']} ({store.spec.model['hash'][:12]})"),
        ("corpus", store.spec.corpus["description"].get("source")),
        ("rows", f"{store.sequences:,} sequences x {store.context} positions"),
        ("size", human_bytes(store.spec.bytes)),
    ]
    lines += [(name, f"{len(r):,} sequences") for name, r in store.splits.items()]
    for site, width in store.width.items():
        stats = store.stats(site)
        lines.append((site, f"D = {width}, mean norm {stats.mean_norm:.2f}"))
    return lines


def _coder_info(path: Path) -> list[tuple[str, Any]]:
    config = read_json(path / "cfg.json")
    metadata = config.get("metadata", {})
    return [
        ("coder", path),
        ("architecture", config["architecture"]),
        ("width", f"{config['d_sae']:,} latents of {config['d_in']} dimensions"),
        ("k", config.get("k", "-")),
        ("site", metadata.get("hook_name")),
        *([("predicts", out)] if (out := metadata.get("hook_name_out")) else []),
        ("model", metadata.get("model_name")),
    ]


def _index_info(path: Path) -> list[tuple[str, Any]]:
    meta = read_json(path / "index.json")
    return [
        ("index", path),
        ("coder", meta["coder"]),
        ("site", meta["site"]),
        ("features", f"{meta['d_sae']:,}"),
        ("tokens", human_count(meta["tokens"])),
    ]
