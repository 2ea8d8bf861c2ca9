"""Which runs the recovery benchmark makes, and which of them its table shows."""

from argparse import Namespace

from benchmarks.recovery import COLUMNS, SEEDED, TUNED, Row, best_multiple, missing, table
from benchmarks.recovery_systems import CASES, PEERS, SKLEARN
from sae.coders.registry import TRAINABLE, TWO_SITES

GIVEN = Namespace(only=None, multiples=[1.0, 3.0])
PEER = ("sae_lens", "topk")


def row(trial: tuple[str, str, float | None], mcc: float | None, seed: int = 0) -> Row:
    system, architecture, multiple = trial
    named = {"system": system, "architecture": architecture, "multiple": multiple}
    scores = {"failed": "out of memory"} if mcc is None else dict.fromkeys(COLUMNS, mcc)
    return {"case": "independent", "seed": seed, **named, **scores, "seconds": 1.0, "samples": 9}


def test_every_architecture_has_its_case_and_all_that_is_compared_all_rates() -> None:
    found = {case: missing(GIVEN, [], case, 0) for case in CASES}
    ours = {t[1] for trials in found.values() for t in trials if t[0] == "loupe"}
    assert ours == set(TRAINABLE)
    assert {t[1] for t in found["two sites"]} == set(TWO_SITES) & set(TRAINABLE)
    tuned = [t[:2] for t in found["independent"] if t[2] is not None]
    assert sorted(tuned) == sorted(2 * TUNED)
    assert set(TUNED) == {*PEERS, *(("loupe", name) for name in SEEDED)}
    assert (*SKLEARN, None) in found["structured"]


def test_a_peer_goes_on_with_its_best_rate() -> None:
    first = missing(GIVEN, [], "independent", 0)
    rows = [row(trial, 0.5 + (0.1 if trial[2] == 3 else 0)) for trial in first]
    assert missing(GIVEN, rows, "independent", 0) == []
    later = missing(GIVEN, rows, "independent", 1)
    assert {t[2] for t in later if t[:2] in TUNED} == {3.0}
    assert {t[1] for t in later} == {"topk", "batchtopk"}
    rows.append(row((*PEER, 3.0), 0.4, seed=1))
    assert (*PEER, 3.0) not in missing(GIVEN, rows, "independent", 1)


def test_a_rate_at_which_it_failed_is_not_its_best() -> None:
    rows = [row((*PEER, 1.0), 0.2), row((*PEER, 3.0), None)]
    assert best_multiple(rows, "independent", PEER) == 1.0
    assert best_multiple(rows[1:], "independent", PEER) == 1.0  # its default, if nothing worked


def test_the_table_shows_the_best_rate_and_what_was_tried() -> None:
    rows = [row((*PEER, 1.0), 0.2), row((*PEER, 3.0), 0.6), row((*PEER, 3.0), 0.4, seed=1)]
    *_, chance, line = table(rows).splitlines()
    assert chance.startswith("| independent | random dictionary | - | 0.")
    assert chance.count("|") == line.count("|")
    assert table(rows).count("random dictionary") == 1
    assert line.startswith("| independent | sae_lens | topk | 0.500 |")
    assert line.endswith("| 0.600, 0.400 | 1 | 3 x | 1: 0.200, 3: 0.600 |")
