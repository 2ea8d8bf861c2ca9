import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sae.base.errors import UserError
from sae.features import FeatureIndex, Notes, assemble, verify_index
from sae.features.notes_file import notes_problems
from tests.features.synthetic import make_index


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes.sqlite3", "hash-a", width=40)


def test_reading_makes_no_file(notes: Notes) -> None:
    assert notes.labels() == {}
    assert notes.undo() is None
    assert notes.history() == []
    assert not notes.path.exists()


def test_labels_stars_and_tags(notes: Notes) -> None:
    notes.set_label(3, "  names ")
    notes.star(3)
    notes.tag(3, "people", "english")
    notes.tag(3, "people")
    notes.untag(3, "english")
    again = Notes(notes.path, "hash-a")
    assert again.label(3) == "names"
    assert again.stars() == {3}
    assert again.tags() == {3: ["people"]}
    again.set_label(3, "")
    again.star(3, on=False)
    assert again.labels() == {}
    assert again.stars() == set()


def test_history_and_undo(notes: Notes) -> None:
    notes.set_label(1, "first")
    notes.set_label(1, "second")
    notes.set_label(2, "other")
    notes.set_label(2, "other")  # no change, no entry
    assert [change.value for change in notes.history()] == ["first", "second", "other"]
    taken_back = notes.undo(1)
    assert taken_back is not None
    assert taken_back.value == "second"
    assert notes.labels() == {1: "first", 2: "other"}
    notes.undo()
    assert notes.labels() == {1: "first"}
    notes.undo()
    assert notes.labels() == {}
    assert notes.undo() is None
    assert [change.undone for change in notes.history()] == [True] * 3
    notes.set_label(1, "third")
    assert notes.label(1) == "third"


def test_notes_belong_to_one_coder(notes: Notes) -> None:
    notes.set_label(1, "mine")
    other = Notes(notes.path, "hash-b")
    assert other.labels() == {}
    assert other.undo() is None
    assert notes.labels() == {1: "mine"}


def test_notes_travel_as_json(notes: Notes, tmp_path: Path) -> None:
    notes.set_label(1, "naïve “quotes” <b>")
    notes.star(2)
    notes.tag(2, "x")
    other = Notes(tmp_path / "other.sqlite3", "hash-a", width=40)
    other.set_label(1, "before")
    assert other.import_json(notes.export_json()) == 2
    assert other.export_json() == notes.export_json()
    other.undo(1)
    assert other.label(1) == "before"


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        ({"coder_hash": "hash-b"}, "belong to the coder"),
        ({"schema": 9}, "no notes of Loupe"),
        ({"features": {"40": {"label": "x"}}}, "end at 39"),
        ({"features": {"x": {"label": "x"}}}, "does not exist"),
        ({"features": {"1": {"label": "kept out"}, "2": {"label": 5}}}, "malformed"),
        ({"features": {"1": {"tags": "abc"}}}, "malformed"),
    ],
)
def test_bad_notes_change_nothing(notes: Notes, mend: dict, message: str) -> None:
    good = {"schema": 1, "coder_hash": "hash-a", "features": {}}
    with pytest.raises(UserError, match=message):
        notes.import_json(good | mend)
    assert notes.history() == []


def test_notes_that_cannot_all_be_imported_change_nothing(notes: Notes) -> None:
    good = {"schema": 1, "coder_hash": "hash-a"}
    features = {"1": {"label": "short", "star": True}, "2": {"label": "x" * 2**20}}
    with pytest.raises(UserError, match="feature 2 is too long"):
        notes.import_json({**good, "features": features})
    assert notes.history() == []


def test_a_file_that_is_in_use_is_not_to_be_moved_aside(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes.set_label(1, "mine")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **_: connect(path, timeout=0))
    with closing(connect(notes.path)) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN EXCLUSIVE")
        for use in (notes.labels, lambda: notes.set_label(1, "x"), lambda: notes.undo(1)):
            with pytest.raises(UserError, match=r"in use, .*try again") as raised:
                use()
            assert "aside" not in str(raised.value)
        assert "try again" in notes_problems(notes.path)[0]
    assert notes.labels() == {1: "mine"}


def test_text_that_is_no_text_is_damage(notes: Notes) -> None:
    notes.set_label(1, "mine")
    with closing(sqlite3.connect(notes.path)) as connection, connection:
        connection.execute("UPDATE changes SET value = CAST(x'22ff22' AS TEXT)")
    with pytest.raises(UserError, match="move it aside"):
        notes.labels()


def test_a_feature_beyond_the_dictionary(notes: Notes) -> None:
    with pytest.raises(UserError, match="end at 39"):
        notes.set_label(40, "x")


def test_many_threads_write(notes: Notes) -> None:
    threads = [threading.Thread(target=notes.set_label, args=(n, f"label {n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert notes.labels() == {n: f"label {n}" for n in range(8)}


def test_the_users_label_wins(index_folder: Path, tmp_path: Path) -> None:
    index = FeatureIndex.open(index_folder)
    index.notes = Notes(tmp_path / "notes.sqlite3", index.meta["coder_hash"])
    automatic = index.labels()
    index.notes.set_label(0, "the word return")
    index.notes.star(1)
    index.notes.tag(2, "bigram")
    view = index.view()
    assert index.labels()[0] == view["label"][0] == "the word return"
    assert view["label_kind"][0] == "user"
    assert view["label_score"].isna()[0]
    assert index.labels()[1:].equals(automatic[1:])
    assert view.index[view["star"]].tolist() == [1]
    assert view["tags"][2] == ["bigram"]
    assert index.table["label"][0] == automatic[0]
    index.notes.undo(0)
    assert index.labels()[0] == automatic[0]


WRITER = """
import sys
from sae.features.notes import Notes
notes, own = Notes(sys.argv[1], "hash-a", width=40), int(sys.argv[2])
for number in range(int(sys.argv[3])):
    notes.set_label(own, f"label {number}")
    notes.tag(39, f"{own}-{number}")
    print(number, flush=True)  # acknowledged: both are to be found, whatever comes
"""
WRITES = 40


def test_processes_write_at_once_and_some_are_killed(notes: Notes) -> None:
    """All that was acknowledged is there, in order, and the file is sound."""
    command = [sys.executable, "-c", WRITER, str(notes.path)]
    writers = [
        subprocess.Popen([*command, str(n), str(WRITES)], stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    acknowledged: list[int] = []
    for number, writer in enumerate(writers):
        assert writer.stdout is not None
        if number % 2:  # in the middle of whatever it is doing
            for _ in range(3 * number):
                writer.stdout.readline()
            writer.kill()
        acknowledged.append(3 * (number % 2) * number + len(writer.stdout.read().split()))
        writer.wait()
        writer.stdout.close()
    assert acknowledged[0] == acknowledged[2] == WRITES
    assert notes_problems(notes.path) == []
    tags = notes.tags()[39]
    for own, count in enumerate(acknowledged):
        values = [change.value for change in notes.history(own)]
        assert values[:count] == [f"label {n}" for n in range(count)]
        assert len(values) <= count + 1  # the one that it died over
        assert {f"{own}-{n}" for n in range(count)} <= set(tags)


def test_a_file_of_another_make_is_not_read(notes: Notes) -> None:
    """Its views and computed columns would run with our queries, without end."""
    endless = (
        "CREATE VIEW changes AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
        "SELECT n AS id, 'hash-a' AS coder, n AS feature, 'label' AS field, '\"x\"' AS value, "
        "'' AS time, 0 AS undone FROM c"
    )
    with closing(sqlite3.connect(notes.path)) as connection:
        connection.executescript(endless)
    with pytest.raises(UserError, match="no file of notes"):
        notes.labels()
    with pytest.raises(UserError, match="no file of notes"):
        notes.set_label(1, "x")
    assert "no file of notes" in notes_problems(notes.path)[0]


PATIENT = """
import sys
from sae.base.errors import UserError
from sae.features.notes import Notes
notes = Notes(sys.argv[1], "c" * 64, width=40)
for number in range(int(sys.argv[2])):
    while True:
        try:
            notes.set_label(3, f"label {number}")
            break
        except UserError:  # told: it was not saved
            continue
    print(number, flush=True)
"""


@pytest.mark.parametrize("step", ["_sync", "sync_folder"])
def test_the_first_note_survives_an_index_that_is_put_in_place_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = make_index(tmp_path / "topk")
    notes, original = FeatureIndex.open(folder).notes, getattr(assemble, step)

    def write_meanwhile(path: Path) -> None:
        notes.set_label(3, "first")
        original(path)

    monkeypatch.setattr(assemble, step, write_meanwhile)
    make_index(folder)
    assert FeatureIndex.open(folder).notes.labels() == {3: "first"}
    assert verify_index(folder) == []


def test_an_index_that_is_built_again_keeps_what_is_written_meanwhile(tmp_path: Path) -> None:
    folder, count = make_index(tmp_path / "topk"), 150
    command = [sys.executable, "-c", PATIENT, str(folder / "notes.sqlite3"), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        builds = 0
        while writer.poll() is None and builds < 20:
            make_index(folder)
            builds += 1
        assert len(writer.stdout.read().split()) == count - 1
    index = FeatureIndex.open(folder)
    assert [change.value for change in index.notes.history(3)] == [
        f"label {number}" for number in range(count)
    ]
    assert verify_index(folder) == []
    assert not list(tmp_path.glob("*.old"))
