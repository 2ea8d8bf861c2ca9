"""Valid files of every kind that Loupe reads, small: what the fuzzing starts from.

Each function fills `folder` with variants, a folder each; a case changes files of one of them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from sae.base.files import write_json
from tests.conftest import tiny_settings

SITE = "blocks.0.hook_resid_post"
D, F, STEP = 12, 40, 7
CODER_HASH = "c" * 64
CODERS = {
    "topk": {"k": 4},
    "jumprelu": {},
    "gated": {},
    "matching_pursuit": {"max_iterations": 4},
    "switch": {"k": 4, "experts": 4},
    "ista": {},
    "skip_transcoder": {"k": 4, "d_out": 8},
}


def configuration(folder: Path, run: Path, model: Path) -> None:
    from pipelines.config import RunConfig
    from sae.base.config import load_config

    settings = tiny_settings(Path("run"), Path("m"), Path("c"))
    sweep = "train.sweep={architecture: [topk, batchtopk], k: [2, 4], seed: 0}"
    for name, more in (("plain", []), ("sweep", [sweep])):
        (folder / name).mkdir()
        config = load_config(RunConfig, None, [*settings, *more])
        text = yaml.safe_dump(config.model_dump(mode="json"))
        (folder / name / "run.yaml").write_text(text)
        (folder / name / "settings.txt").write_text("\n".join([*settings, *more]))


def coders(folder: Path, run: Path, model: Path) -> None:
    from sae.coders import make_coder, save_coder

    for name, options in CODERS.items():
        coder = make_coder(name, D, F, **options)
        coder.metadata = {"hook_name": SITE, "loupe": {"version": "0", "scale": 1.0}}
        save_coder(coder.for_inference(), folder / name)
    strange = folder / "sae_lens"
    shutil.copytree(folder / "topk", strange)
    (strange / "SHA256SUMS").unlink()
    config = json.loads((strange / "cfg.json").read_text())
    (strange / "cfg.json").write_text(json.dumps({**config, "rescale_acts_by_decoder_norm": True}))


def sparsify(folder: Path, run: Path, model: Path) -> None:
    import torch
    from safetensors.torch import save_file

    names = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    (folder / "a").mkdir()
    save_file({n: torch.ones(s) for n, s in names.items()}, folder / "a" / "sae.safetensors")
    config = {"d_in": D, "num_latents": F, "k": 4, "activation": "topk", "transcode": False}
    (folder / "a" / "cfg.json").write_text(json.dumps(config))


def dictionary_learning(folder: Path, run: Path, model: Path) -> None:
    import torch

    for kind in ("AutoEncoderTopK", "BatchTopKSAE", "AutoEncoder"):
        (folder / kind).mkdir()
        state = {
            "encoder.weight": torch.ones(F, D),
            "encoder.bias": torch.ones(F),
            "decoder.weight": torch.ones(D, F),
            "bias" if kind == "AutoEncoder" else "b_dec": torch.ones(D),
            "k": torch.tensor(4),
            "threshold": torch.tensor(0.5),
        }
        torch.save(state, folder / kind / "ae.pt")
        write_json(folder / kind / "config.json", {"trainer": {"dict_class": kind, "lr": 0.1}})


def exports(folder: Path, run: Path, model: Path) -> None:
    (folder / "a").mkdir()
    shutil.copy(run / "export" / "topk.h5", folder / "a" / "topk.h5")


def coder_and_index(folder: Path, run: Path, model: Path) -> None:
    shutil.copytree(run / "features" / "topk", folder / "a" / "index")
    shutil.copytree(run / "coders" / "topk", folder / "a" / "coder")
    shutil.rmtree(folder / "a" / "coder" / "tensorboard")
    for sums in folder.rglob("SHA256SUMS"):
        sums.unlink()


def stores(folder: Path, run: Path, model: Path) -> None:
    from tests.store.fixtures import make_store

    shutil.copytree(run / "activations.zarr", folder / "run")
    make_store(folder / "small", sequences=40, train=30)
    make_store(folder / "zstd", sequences=40, train=30, compression="zstd")


def unfinished(folder: Path, run: Path, model: Path) -> None:
    """What kills leave: a store and an index that are not whole."""
    from sae.features.spill import Spill
    from sae.store import StoreWriter
    from tests.store.fixtures import make_parts, write_shards

    (folder / "a").mkdir()
    spec, tokens, documents, data = make_parts(sequences=9000, train=8500)
    with StoreWriter(folder / "a" / "s.zarr", spec, tokens, documents) as writer:
        write_shards(writer, data, [0])
    (folder / "a" / "index.partial").mkdir()
    with Spill(folder / "a" / "index.partial", F, "f") as spill:
        spill.append(np.full(8, 2, np.uint32), np.arange(16), np.ones(16))


def checkpoints(folder: Path, run: Path, model: Path) -> None:
    from sae.training.checkpoint import save_checkpoint

    trainers = make_trainers()
    for step in (STEP - 1, STEP):
        trainers[0].done = step
        save_checkpoint(folder / "a", trainers, "f")
    log = [{"step": step, "loss": 1.0 / step, "tokens": step * 8} for step in range(1, 10)]
    (folder / "a" / "c" / "training.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")


def make_trainers() -> list:
    from sae.coders import make_coder
    from sae.store import SiteStats
    from sae.training import CoderTrainer, Settings

    stats = SiteStats(1000, np.zeros(D), 16.0, 4.0)
    coder = make_coder("topk", D, F, k=4)
    return [CoderTrainer("c", coder, SITE, stats, Settings(steps=20, batch=8, ema=0.9))]


def indexes(folder: Path, run: Path, model: Path) -> None:
    from tests.features.synthetic import make_index

    make_index(folder / "words", coder_hash=CODER_HASH)
    shutil.copytree(run / "features" / "topk", folder / "run")
    for sums in folder.rglob("SHA256SUMS"):
        sums.unlink()


def notes(folder: Path, run: Path, model: Path) -> None:
    from sae.features.notes import Notes

    (folder / "a").mkdir()
    found = Notes(folder / "a" / "notes.sqlite3", CODER_HASH, width=F)
    for feature in range(12):
        found.set_label(feature, f"label {feature}")
        found.star(feature)
        found.tag(feature, "x", "y")
    found.undo()
    write_json(folder / "a" / "notes.json", found.export_json())


def evaluations(folder: Path, run: Path, model: Path) -> None:
    evaluation = json.loads((run / "evaluation" / "topk.json").read_text())
    other = json.loads(json.dumps(evaluation))
    other["metrics"]["l0"]["value"] *= 2
    comparison = run / "evaluation" / "compare" / "comparison.json"
    for name in ("one", "two"):
        results = folder / name / "evaluation"
        (results / "compare").mkdir(parents=True)
        (results / "a.json").write_text(json.dumps(evaluation))
        shutil.copy(comparison, results / "compare" / "comparison.json")
        for coder in ("a", "b")[: 1 + (name == "two")]:  # whose weights the evaluation names
            shutil.copytree(run / "coders" / "topk", folder / name / "coders" / coder)
    (folder / "two" / "evaluation" / "b.json").write_text(json.dumps(other))


def manifests(folder: Path, run: Path, model: Path) -> None:
    (folder / "a").mkdir()
    for name in ("manifest.json", "run.yaml"):
        shutil.copy(run / name, folder / "a" / name)


def sums(folder: Path, run: Path, model: Path) -> None:
    shutil.copytree(run / "coders" / "topk", folder / "a")


def corpora(folder: Path, run: Path, model: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"Text {i}, of some words.\n" * 3 for i in range(20)]
    for name in ("txt", "jsonl", "parquet"):
        (folder / name).mkdir()
    (folder / "txt" / "a.txt").write_text("".join(texts))
    (folder / "txt" / "b.md").write_text(texts[3])
    rows = [{"text": text, "title": f"T{i}", "id": str(i)} for i, text in enumerate(texts)]
    (folder / "jsonl" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "parquet" / "a.parquet")


def models(folder: Path, run: Path, model: Path) -> None:
    shutil.copytree(model, folder / "a")


def additions(folder: Path, run: Path, model: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from sae.lm.modular_addition import ModularAddition

    (folder / "a").mkdir()
    sizes = {"p": 11, "d_model": 8, "heads": 2, "d_mlp": 16}
    state = ModularAddition(**sizes).state_dict()
    save_file({k: torch.ones_like(v) for k, v in state.items()}, folder / "a/model.safetensors")
    write_json(folder / "a" / "config.json", {"model": sizes, "epoch": 1})


def filters(folder: Path, run: Path, model: Path) -> None:
    (folder / "a").mkdir()
    shutil.copytree(run / "features" / "topk", folder / "a" / "index")
    terms = (
        'density>1e-4 label:"the a" token:" Paris" promotes:x suppresses:y kind:class',
        "3,17,40-60 max<=20 label_score!=0.5 starred tag:mine @saved.json",
    )
    (folder / "a" / "filter.txt").write_text("\n".join(terms))
    write_json(folder / "a" / "saved.json", {"filter": "count>0"})


def probe_sets(folder: Path, run: Path, model: Path) -> None:
    (folder / "a").mkdir()
    rows = "".join(f'"Is {i} even, or ""odd""?",{i % 2}\n' for i in range(40))
    (folder / "a" / "even.csv").write_text("prompt,target\n" + rows)
