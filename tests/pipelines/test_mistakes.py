"""The table of mistakes: each gets one sentence that helps, exit code 2, and no traceback.

Settings are tried on a folder that holds nothing, or on a finished run; YAML files are written as
they are given here. `python -m pytest tests/pipelines/test_mistakes.py -rA` prints the sentences.
"""

import re
from pathlib import Path

import pytest

from tests.pipelines.command import sae

CODER = "train.coders=[{{name: a, {}}}]"


def coder(settings: str) -> list[str]:
    return [CODER.format(settings)]


SETTINGS: list[tuple[list[str], str]] = [
    # keys
    (["train.bach=3"], "Unknown configuration key `train.bach`. Did you mean `batch`"),
    (["trian.batch=3"], "`trian`. Did you mean `train`"),
    (["corpus.sorce=x"], "Did you mean `source`"),
    (["modle.name=x"], "Did you mean `model`"),
    (["harvest.site=[a]"], "Did you mean `sites`"),
    (["evaluate.tokns=5"], "Did you mean `tokens`"),
    (["index.tokenss=1"], "Did you mean `tokens`"),
    (["export.formt=hdf5"], "Did you mean `format`"),
    (["--train.coders.0.archtecture", "topk"], "Did you mean `architecture`"),
    (["train.coders.5.k=3"], "element `5` of a list of 1"),
    (["train.coders.first.k=3"], "element `first` of a list of 1"),
    (["zzz=1"], "Valid keys: folder, model"),
    # how a setting is given
    (["train.batch"], "is no setting; give it as key=value"),
    (["--train.batch"], "`--train.batch` needs a value"),
    (["=3"], "Unknown configuration key ``|is no setting"),
    (["train.batch=[1,"], "cannot be read as a value"),
    (["train.coders=[{name: a, k: 3]"], "cannot be read as a value"),
    (["train.batch=!!python/name:os.system"], "cannot be read as a value"),
    # values
    (["train.batch=0"], "greater than or equal to 1"),
    (["train.batch=-5"], "greater than or equal to 1"),
    (["train.batch=many"], "`train.batch`: .*integer.*many"),
    (["train.batch=1.5"], "integer"),
    (["train.batch=nan"], "`train.batch`: .*finite"),
    (["train.batch=1e400"], "`train.batch`: .*finite"),
    (["train.coders.0.learning_rate=.nan"], "`train.coders.0.learning_rate`: .*finite"),
    (["train.coders.0.l1=.inf"], "`train.coders.0.l1`: .*finite"),
    (["train.coders.0.seed=-1"], "greater than or equal to 0"),
    (["evaluate.seed=-1"], "greater than or equal to 0"),
    (["harvest.sites.0.x=3"], "asks for a part of what has no parts"),
    (["train.coders=[{name: topk.old}]"], "cannot be called `topk.old`"),
    (["train.batch={a: 1}"], "`train.batch`: .*integer"),
    (["train.batch=20000000"], "`train.batch`: .*less than or equal to 16777216"),
    (["train.tokens=1000000000000000000000"], "`train.tokens`: .*less than or equal to"),
    (["train.tokens=0"], "greater than or equal to 1"),
    (["train.warmup=2"], "less than or equal to 1"),
    (["train.decay=-0.1"], "greater than or equal to 0"),
    (["train.warmup=0.8", "train.decay=0.5"], "together they must not exceed 1"),
    (["train.checkpoint_seconds=0"], "greater than 0"),
    (["corpus.heldout_share=1"], "less than 1"),
    (["corpus.heldout_share=half"], "number.*half"),
    (["corpus.context=0"], "greater than or equal to 1"),
    (["harvest.sites=[]"], "at least 1 item"),
    (["harvest.sites=5"], "`harvest.sites`"),
    (["harvest.compression=gzip"], "`harvest.compression`: .*none|zstd"),
    (["export.format=csv"], "`export.format`: .*hdf5"),
    (["train=5"], "`train`"),
    (["folder="], "`folder`"),
    # coders
    (["train.coders=[]"], "at least one coder"),
    (["train.coders=[{k: 3}]"], "name"),
    (["train.coders=[{name: ../up}]"], "pattern"),
    (["train.coders=[{name: a b}]"], "pattern"),
    ([f"train.coders=[{{name: {'a' * 101}}}]"], "at most 100 characters"),
    (["train.coders=[{name: a, k: 3}, {name: a, k: 4}]"], "called `a` and differ"),
    (coder("architecture: topkk"), "Did you mean `topk`"),
    (coder("architecture: jumprelu_transcoder"), "form in which coders are saved"),
    (coder("architecture: relu, k: 3"), "`relu` has no hyperparameter `k`"),
    (coder("l1: 3"), "`topk` has no hyperparameter `l1`"),
    (coder("k: 0"), "greater than or equal to 1"),
    (coder("width: 0"), "greater than or equal to 1"),
    (coder("width: 16777217"), "less than or equal to 16777216"),
    (coder("expansion: 10000000000"), "less than or equal to 16777216"),
    (coder("recipe: monosemantic"), "unknown recipe .*Did you mean"),
    (coder("site: blocks.9.hook_resid_post"), "not in `harvest.sites`"),
    (coder("architecture: transcoder"), "name it as `target_site`"),
    (coder("architecture: transcoder, target_site: b"), "`b`, which is not in `harvest.sites`"),
    (coder("architecture: relu, resample: [2]"), "less than or equal to 1"),
    (coder("architecture: relu, resample: [0]"), "shares of the training"),
    (coder("architecture: matryoshka, prefixes: [2.0]"), "less than or equal to 1"),
    (["train.sweep=3"], "`train.sweep` is 3; it must be a mapping"),
    (["train.sweep={kk: [1]}"], "`train.sweep.kk`"),
    (["train.sweep={k: []}"], "is empty"),
    (["train.sweep={width: [8], expansion: [2]}"], "both `width` and `expansion`"),
    # model and corpus
    (["model.name=./nowhere"], "model folder ./nowhere does not exist"),
    (["model.dtype=int8"], "Unknown dtype `int8`"),
    (["model.device=gpu"], "`model.device`|device `gpu`"),
    (["model.device=cuda:99"], "`cuda:99`"),
    (["harvest.sites=[blocks.9.hook_resid_post]"], "`blocks.0` to `blocks.1`"),
    (["harvest.sites=[blocks.0.resid]"], "Did you mean `hook_resid_p"),
    (["harvest.sites=[resid]"], "`resid`"),
    (["corpus.source=/nowhere/at/all"], "was not found"),
    (["corpus.context=64"], "longer than the context"),
    (["corpus.train_tokens=1e15", "corpus.source=hf:x"], "datasets|could not be opened"),
    # commands
    (["--only", "trian"], "Did you mean `train`"),
    (["--from", "harvset"], "Did you mean `harvest`"),
    (["--only", "train"], "needs `harvest`"),
    (["--only"], "requires an argument"),
]


def one_sentence(output: str) -> str:
    """The one line that `sae` says, or click's own usage error."""
    lines = [line for line in output.splitlines() if line.startswith(("sae:", "Error:"))]
    assert len(lines) == 1, output
    assert "Traceback" not in output
    print(lines[0])
    return lines[0]


@pytest.mark.parametrize(
    ("settings", "message"), SETTINGS, ids=[" ".join(s)[:60] for s, _ in SETTINGS]
)
def test_settings(tiny_config: list[str], settings: list[str], message: str) -> None:
    said = one_sentence(sae("run", *tiny_config, *settings, code=2))
    assert re.search(message, said), said


ON_DATA: list[tuple[list[str], str]] = [
    (["train.coders=[{name: a, k: 999}]"], "between 1 and the dictionary's width"),
    (["train.sweep={width: [16000000], seed: [1, 2, 3, 4]}"], "needs about .* of memory"),
    (["train.coders=[{name: a, architecture: switch, k: 2, experts: 7}]"], "expert"),
    (["train.coders=[{name: a, resample: [0.5]}]"], "only `relu` coders"),
    (["train.batch=1000000"], "fewer than one batch"),
]


@pytest.mark.parametrize(("settings", "message"), ON_DATA, ids=[s[0][:60] for s, _ in ON_DATA])
def test_settings_that_do_not_fit_the_data(copy: Path, settings: list[str], message: str) -> None:
    said = one_sentence(sae("run", str(copy), "--only", "train", *settings, code=2))
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("density>much", "density>much|much"),
        ("dnsity>0.1", "Did you mean"),
        ("@/nowhere.json", "nowhere.json"),
        ("5-2", "5-2"),
        ("9999", "9999"),
        ("label:zzzzzz", "No feature satisfies"),
    ],
)
def test_filters(copy: Path, features: str, message: str) -> None:
    said = one_sentence(sae("export", str(copy), "--export.features", features, code=2))
    assert re.search(message, said), said


YAML: list[tuple[bytes, str]] = [
    (b"train: [1, 2", "is not valid YAML"),
    (b"train:\n\t- x", "is not valid YAML"),
    (b"train: {batch: 3", "is not valid YAML"),
    (b"- a\n- b\n", "holds a list; a configuration is a mapping"),
    (b"just text", "holds a str"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "is not valid YAML"),
    (b"\xff\xfe\x00", "is not valid YAML"),
    (b"x: !!python/object/apply:os.system ['true']", "is not valid YAML"),
    (b"train: {bach: 3}", "Did you mean `batch`"),
    (b"train: 7", "`train`"),
    (b"train: {coders: 3}", "`train.coders`"),
    (b"train: {coders: [3]}", "`train.coders.0`"),
    (b"train: {coders: [{name: 3}]}", "`train.coders.0.name`"),
    (b"train: {coders: [{name: a, kk: 3}]}", "`train.coders.0.kk`"),
    (b"folder: [a]", "`folder`"),
    (b"1: 2", "`1`"),
    (b"model: null", "`model`"),
]


@pytest.mark.parametrize(("text", "message"), YAML, ids=[repr(t)[:50] for t, _ in YAML])
def test_files(tmp_path: Path, text: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a run would go that should not be
    (tmp_path / "c.yaml").write_bytes(text)
    said = one_sentence(sae("run", str(tmp_path / "c.yaml"), code=2))
    assert re.search(message, said), said


def _corpus(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return f"corpus.source={folder / name}"


CORPORA: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', "Line 2 of .* is not valid JSON"),
    ("a.jsonl", b'{"body": "x"}\n', "has no column `text`"),
    ("a.jsonl", b"[1]\n", "no column `text`"),
    ("a.jsonl", b"\xff\xfe\n", "UTF-8|not valid"),
    ("a.parquet", b"PAR1 no parquet PAR1", "a.parquet"),
    ("a.docx", b"x", "its ending must be one of"),
    ("a.txt", b"", "text|tokens"),
]


@pytest.mark.parametrize(
    ("name", "content", "message"), CORPORA, ids=[f"{n}-{c!r}"[:50] for n, c, _ in CORPORA]
)
def test_corpora(
    tiny_config: list[str], tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    source = _corpus(tmp_path, name, content)
    said = one_sentence(sae("run", *tiny_config, source, "--only", "harvest", code=2))
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "NOWHERE"], "is no run folder"),
        (["verify", "NOWHERE"], "is no run folder"),
        (["browse", "NOWHERE"], "no feature index to browse"),
        (["browse", "--port", "abc"], "abc"),
        (["run", "NOWHERE.yaml"], "does not exist"),
        (["run", "EMPTY"], "it has no run.yaml"),
        (["train", "EMPTY"], "it has no run.yaml"),
        (["run", "folder=FILE"], "FILE"),
        (["run", "folder=FILE/inside"], "FILE"),
        (["verify", "FILE"], "is no run folder"),
        (["info", "FILE"], "is no run folder"),
        (["run", f"folder=FILE{'x' * 300}"], "name too long.*can be read and written"),
        (["mechanisms", "induction", "EMPTY", "--sequences", "0"], "--sequences.*x>=1"),
        (["mechanisms", "concepts", "EMPTY", "--tokens", "-1"], "--tokens.*x>=1"),
        (["mechanisms", "probes", "EMPTY", "--texts", "0"], "--texts.*x>=1"),
        (["mechanisms", "labels", "EMPTY", "--directions", "0"], "--directions.*x>=1"),
        (["mechanisms", "concepts", "EMPTY", "--seed", "9" * 20], "--seed.*x<=4294967295"),
        (["explain", "EMPTY", "--seed", "9" * 20], "--seed.*x<=4294967295"),
        (["trian"], "No such command"),
        (["run", "--dry-run=maybe"], "does not take a value"),
        (["info"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_commands(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("x")
    given = [re.sub(r"NOWHERE|EMPTY|FILE", lambda m: f"{tmp_path}/{m[0]}", a) for a in arguments]
    said = one_sentence(sae(*given, code=2))
    assert re.search(message, said), said


def test_a_damaged_manifest_is_a_sentence(copy: Path) -> None:
    text = (copy / "manifest.json").read_text().replace('"seconds": ', '"seconds": 1')
    (copy / "manifest.json").write_text(text)
    said = one_sentence(sae("run", str(copy), code=2))
    assert "manifest.json is damaged" in said


def test_the_table_is_long_enough() -> None:
    assert len(SETTINGS) + len(YAML) + len(CORPORA) + len(ON_DATA) >= 60
