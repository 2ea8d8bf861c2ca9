"""The table that a run ends with, and `sae info`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.config import RunConfig
from pipelines.manifest import Manifest
from pipelines.progress import console, human_count
from sae.base.commands import command
from sae.base.errors import UserError, one_line
from sae.base.files import human_bytes, read_json, read_json_object
from sae.base.foreign import reading
from sae.base.results import read_evaluation, won_by
from sae.base.sums import require_intact

TOKENS = "{tokens}"  # the form of a column that says on how many tokens a number rests
SHOWN = (
    ("EV", "ev", "{:.3f}"),
    ("L0", "l0", "{:.1f}"),
    ("ΔCE (nats)", "delta_ce", "{:.3f}"),
    ("recovered", "ce_recovered_mean", "{:.3f}"),
    ("alive(N)", "alive", "{:.3f}"),
    ("N", "alive", TOKENS),  # without which alive(N) means nothing
    ("FVU", "fvu", "{:.3f}"),
)

MARK = "!"  # behind a number that a control wins
FEW = 4  # coders that are shown with all that belongs to them
OF_MANY = ("l0", "delta_ce", "alive", "fvu")  # what of more of them fits on a line each


def print_summary(config: RunConfig) -> None:
    """One row per coder with 95 % intervals: of a few, with their controls; of many, by L0."""
    folder = config.folder / "evaluation"
    made = [coder.name for coder in config.train.coders if (folder / f"{coder.name}.json").exists()]
    require_intact(folder, [f"{name}.json" for name in made])
    found = {name: read_evaluation(folder / f"{name}.json") for name in made}
    with reading(f"An evaluation in {config.folder}", "run `sae evaluate` again"):
        _print_evaluations(config, found)
    comparison = folder / "compare" / "comparison.json"
    if len(found) > 1 and comparison.exists():
        require_intact(folder, ["compare/comparison.json"])
        with reading(comparison, "run `sae evaluate` again"):
            _print_comparison(read_json(comparison))
    for label, path in _products(config):
        console.print(f"{label:<10} {path}", markup=False)
    console.print(Text.assemble("next       ", (command("browse", config.folder), "bold")))


def _print_evaluations(config: RunConfig, found: Mapping[str, dict[str, Any]]) -> None:
    few, lost = len(found) <= FEW, {name: won_by(found[name]["ladder"]) for name in found}
    names = list(found) if few else sorted(found, key=lambda n: _l0(found[n]))
    shown = SHOWN if few else [column for column in SHOWN if column[1] in OF_MANY]
    table = _table(str(config.folder), "coder", *(heading for heading, _, _ in shown))
    for name in names:
        cells = _cells(found[name]["metrics"], shown, lost[name], interval=True)
        table.add_row(name, *cells)
        if few and found[name].get("controls"):
            table.add_row(*_on_controls_tokens(found[name], shown), style="dim")
            for control, metrics in found[name]["controls"].items():
                won = [key for key, winners in lost[name].items() if control in winners]
                table.add_row(f"    {control}", *_cells(metrics, shown, won), style="dim")
    console.print(table)
    for name in names:
        won = {key: heading for heading, key, _ in shown if key in lost[name]}
        said = "; ".join(f"{won[key]} ({', '.join(lost[name][key])})" for key in won)
        if said:
            sentence = f"{MARK} A control is as good as {name} or better: {said}"
            console.print(sentence, markup=False, soft_wrap=True)


def _print_comparison(comparison: dict[str, Any]) -> None:
    """The Pareto front and the errors at equal L0, site by site."""
    for group in comparison["groups"]:
        sites = (group["site"], group["target_site"])
        where = " to ".join(dict.fromkeys(sites))  # the second is a transcoder's
        for error, label in (("fvu", "FVU"), ("delta_ce", "ΔCE")):
            kept = group["fronts"][error]
            off = len(group["coders"]) - len(kept)
            console.print(f"[bold]Pareto front[/] of L0 and {label} at {where} ({off} behind):")
            console.print(f"  {', '.join(kept) or 'none'}")
        matched = group["matched"]["fvu"]
        if matched["l0"] and len(matched["families"]) > 1:
            title = f"FVU at equal L0, {where}"
            table = _table(title, "family", *(f"L0 = {l0}" for l0 in matched["l0"]))
            for family, entries in matched["families"].items():
                table.add_row(family, *map(_matched, entries))
            console.print(table)


def _matched(entry: dict[str, Any] | None) -> str:
    """An error at equal L0; of several seeds, on how many of them it rests."""
    if entry is None:
        return "-"
    seeds = f" ({entry['reached']} of {entry['of']} seeds)" if entry["of"] > 1 else ""
    return f"{entry['value']:.4f}{seeds}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _on_controls_tokens(
    evaluation: dict[str, Any], shown: Sequence[tuple[str, str, str]]
) -> list[str]:
    """The coder's own numbers on the fewer tokens on which its controls, below, were scored."""
    compared = {name: {"value": rung["coder"]} for name, rung in evaluation["ladder"].items()}
    own = compared | evaluation.get("coder_beside_controls", {})
    first = next(iter(evaluation["controls"].values()))
    counts = {name: entry["tokens"] for name, entry in first.items()}
    said = [human_count(counts["ev"])]
    if "delta_ce" in counts:  # not of a control that is of another model
        said.append(f"losses {human_count(counts['delta_ce'])}")
    return [f"  on {', '.join(said)} tokens:", *_cells(own, shown, won_by(evaluation["ladder"]))]


def _l0(evaluation: dict[str, Any]) -> float:
    return evaluation["metrics"].get("l0", {}).get("value") or 0.0


def _cells(
    metrics: Mapping[str, Any],
    shown: Sequence[tuple[str, str, str]],
    won: Collection[str] = (),
    interval: bool = False,
) -> list[str]:
    """A cell of each column; `won` are the numbers that are marked, because a control wins them."""
    cells = []
    for _, key, form in shown:
        metric = metrics.get(key)
        if metric is None or metric["value"] is None:
            cells.append("-")
            continue
        if form == TOKENS:
            cells.append(human_count(metric["tokens"]))
            continue
        text = form.format(metric["value"]) + (MARK if key in won else "")
        low, high = metric.get("low"), metric.get("high")
        if interval and low is not None and high is not None:
            text += f" [{form.format(low)}, {form.format(high)}]"
        cells.append(text)
    return cells


def _products(config: RunConfig) -> list[tuple[str, Path]]:
    evaluation, names = config.folder / "evaluation", [c.name for c in config.train.coders]
    candidates = [("store", config.store)]
    if len(names) == 1:
        candidates.append(("report", evaluation / f"{names[0]}.html"))
    else:
        candidates.append(("report", evaluation / "report.html"))
        candidates.append(("comparison", evaluation / "compare" / "comparison.html"))
    if len(names) > FEW:
        candidates += [("coders", config.folder / "coders"), ("exports", config.folder / "export")]
    else:
        for name in names:
            candidates.append(("coder", config.coder_folder(name)))
            candidates.append(("export", config.folder / "export" / f"{name}.h5"))
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
            with reading(path):
                facts = show(path)
            return _print_facts(facts)
    if path.suffix == ".h5" and path.exists():
        return _print_facts(_export_info(path))
    raise UserError(
        f"{path} is no run folder, activation store, coder, feature index or export of Loupe."
    )


def _print_facts(facts: Sequence[tuple[str, Any]]) -> None:
    for label, value in facts:
        console.print(
            Text(f"{one_line(label, 60):<14}", "bold"), one_line(str(value)), markup=False
        )


def _export_info(path: Path) -> list[tuple[str, str]]:
    from sae.io.hdf5_attributes import read_attributes

    require_intact(path.parent, [path.name])
    return read_attributes(path)


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
        ("corpus", _source(store.spec.corpus.get("description"))),
        ("rows", f"{store.sequences:,} sequences x {store.context} positions"),
        ("size", human_bytes(store.spec.bytes)),
    ]
    lines += [(name, f"{len(r):,} sequences") for name, r in store.splits.items()]
    for site, width in store.width.items():
        stats = store.stats(site)
        lines.append((site, f"D = {width}, mean norm {stats.mean_norm:.2f}"))
    return lines


def _source(description: Any) -> Any:
    return description.get("source") if isinstance(description, dict) else description


def _coder_info(path: Path) -> list[tuple[str, Any]]:
    config = read_json_object(path / "cfg.json")
    metadata = config.get("metadata") or {}
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
