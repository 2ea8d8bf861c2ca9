"""Probing, erasure, absorption and specificity of codes whose meaning is planted."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sae.base.errors import UserError
from sae.coders import Coder, make_coder
from sae.lm import LanguageModel
from sae.metrics import concept_data
from sae.metrics.absorption import first_letter_absorption
from sae.metrics.concept_data import Examples, Words, token_examples
from sae.metrics.concept_kinds import UNTOLD, is_code
from sae.metrics.concept_report import concept_report
from sae.metrics.concept_wins import against_controls, verdicts
from sae.metrics.erasure import spurious_correlation_removal, targeted_probe_perturbation
from sae.metrics.paired import paired_ratio
from sae.metrics.probing import sparse_probing, unusable
from sae.metrics.specificity import concept_latents, deciles
from sae.store import ActivationStore
from tests.metrics.conftest import SITE

D, E = 12, 1200


def planted(seed: int, mixed: bool = False, together: float = 0.5) -> tuple[Examples, np.ndarray]:
    """x = Σ f_i d_i + noise; latent 0 is concept `a`, latent 1 is `b`, the rest mean nothing.

    `mixed`: latents 0 and 1 are a + b and a − b instead, so that each carries both concepts.
    `together` is P(b = a).
    """
    rng = np.random.default_rng(seed)
    directions = np.eye(D)
    a = rng.random(E) < 0.5
    b = np.where(rng.random(E) < together, a, ~a)
    acts = np.abs(rng.normal(size=(E, D))) * (rng.random((E, D)) < 0.2)
    acts[:, 0], acts[:, 1] = 3.0 * a, 3.0 * b
    W = directions
    x = acts @ directions + 0.1 * rng.normal(size=(E, D))
    if mixed:  # the same part of x, written by latents along the diagonals
        W = directions.copy()
        W[0, :2], W[1, :2] = (0.7, 0.7), (0.7, -0.7)
        acts[:, :2] = acts[:, :2] @ np.linalg.inv(W[:2, :2])
    labels = {"a": a.astype(np.int8), "b": b.astype(np.int8)}
    unit = np.arange(E) // 20
    return Examples(x.astype(np.float32), sp.csr_matrix(acts), labels, unit), W


def test_the_latent_of_a_concept_probes_it_alone() -> None:
    (train, _), (held, _) = planted(0), planted(1)
    found = sparse_probing(train, held, ["a"])["a"]
    assert found["latents"][0] == 0
    assert found["coder"]["k1"]["value"] == 1
    assert found["whole"]["value"] > 0.99
    assert found["coder"]["k1"]["tokens"] == len(held.take(held.balanced("a", 1500, rng())))


def test_codes_that_know_nothing_guess() -> None:
    (train, _), (held, _) = planted(0), planted(1)
    shuffle = np.random.default_rng(5).permutation
    blind = [
        Examples(side.x_ED[shuffle(E)], side.codes_EF[shuffle(E)], side.labels, side.unit_E)
        for side in (train, held)
    ]
    found = sparse_probing(*blind, ["a"])["a"]
    assert found["coder"]["k5"]["value"] == pytest.approx(0.5, abs=0.08)
    assert found["whole"]["low"] < 0.55


def test_concepts_need_examples_on_both_sides() -> None:
    (train, _), (held, _) = planted(0), planted(1)
    assert unusable("a", train, held) is None
    assert unusable("unheard of", train, held) == "0 train positives; it takes 40"
    few = held.take(np.flatnonzero(held.labels["a"] == 0))
    assert unusable("a", train, few) == "0 held-out positives; it takes 40"
    many = held.take(np.flatnonzero(held.labels["a"] == 1))
    assert unusable("a", many, held) == "0 train negatives; it takes 40"
    four_documents = Examples(held.x_ED, held.codes_EF, held.labels, held.unit_E % 4)
    assert unusable("a", train, four_documents) == "held-out positives of 4 documents; it takes 5"
    held.labels["a"][:] = -1
    assert unusable("a", train, held) == (
        "of no held-out example it is known whether it has the concept"
    )


def test_dimensions_are_ranked_by_what_fits_better() -> None:
    """A huge dimension that hardly knows the concept, and a small one that does."""
    (train, _), (held, _) = planted(0), planted(1)
    for side in (train, held):
        a = side.labels["a"] == 1
        side.x_ED[:, 3] = np.random.default_rng(2).normal(size=E) * 100 + 20 * a
    found = sparse_probing(train, held, ["a"])["a"]["dimensions"]
    assert found["k1"]["value"] > 0.99
    for side in (train, held):  # and where the two rankings agree, it is as it was
        side.x_ED[:, 3] = 0
    assert sparse_probing(train, held, ["a"])["a"]["dimensions"]["k1"]["value"] > 0.99


def test_of_a_control_only_its_latents_are_probed() -> None:
    (train, _), (held, _) = planted(0), planted(1)
    whole = sparse_probing(train, held, ["a"])["a"]
    latents = sparse_probing(train, held, ["a"], activation=False)["a"]
    assert latents == {k: whole[k] for k in ("positives", "latents", "coder")}


def test_targeted_ablation_hits_its_concept_and_no_other() -> None:
    (train, W), (held, _) = planted(0), planted(1)
    found = targeted_probe_perturbation(train, held, ["a", "b"], W, sizes=(1,))["n1"]
    assert found["intended"]["value"] == pytest.approx(0.5, abs=0.05)
    assert found["unintended"]["value"] == pytest.approx(0, abs=0.02)
    assert found["tpp"]["value"] == pytest.approx(0.5, abs=0.05)
    assert found["tpp"]["low"] > 0.4


def test_latents_that_carry_two_concepts_are_no_target() -> None:
    """The same activations, perfectly coded, by latents along the diagonals: no better than 0."""
    (train, W), (held, _) = planted(0, mixed=True), planted(1, mixed=True)
    found = targeted_probe_perturbation(train, held, ["a", "b"], W, sizes=(1, 2))
    assert found["n1"]["tpp"]["value"] < 0.2
    assert found["n2"]["tpp"]["value"] == pytest.approx(0, abs=0.05)
    assert targeted_probe_perturbation(train, held, ["a"], W) == {"concepts": ["a"]}


def test_a_spurious_concept_is_removed_with_its_latent() -> None:
    (train, W), (held, _) = planted(0), planted(1)
    for side in (train, held):  # the true concept is hard to see, so the probe leans on the other
        side.x_ED[:, 0] += np.random.default_rng(7).normal(size=E).astype(np.float32) * 3
    found = spurious_correlation_removal(train, held, ["a", "b"], W, sizes=(1,))
    [pair] = [pair for pair in found["pairs"] if pair["concept"] == "a"]
    assert pair["spurious"] == "b"
    assert pair["biased"]["value"] < pair["unbiased"]["value"] - 0.1
    assert pair["n1"]["value"] > 0.5
    mean = np.mean([p["n1"]["value"] for p in found["pairs"]])
    assert found["n1"]["value"] == pytest.approx(mean)
    assert found["n1"]["low"] < mean < found["n1"]["high"]
    assert found["n1"]["tokens"] > 0


def test_pairs_that_do_not_mislead_are_left_out() -> None:
    (train, W), (held, _) = planted(0), planted(1)
    for side in (train, held):
        side.x_ED[:, 1] = 0  # the spurious concept cannot be seen at all
    found = spurious_correlation_removal(train, held, ["a", "b"], W, sizes=(1,))
    assert not [pair for pair in found["pairs"] if pair["concept"] == "a"]


def words(seed: int, absorbed: float) -> tuple[Words, np.ndarray]:
    """Words of four letters. Latent i says "begins with letter i", but for a share of the types
    of letter 0, where a latent of the type writes the letter instead."""
    types, letters = 400, "abcd"
    spelled = [
        f" {letters[t % 4]}{chr(97 + t // 4 % 26)}{chr(97 + t // 104)}" for t in range(types)
    ]
    rng = np.random.default_rng(seed)
    token = rng.integers(0, types, 6000)
    swallowed = (np.arange(types) % 4 == 0) & (np.arange(types) // 4 % 100 < 100 * absorbed)
    width = 4 + types
    W = np.zeros((width, 4 + 8))
    W[:4, :4] = np.eye(4)
    W[4:, 4:] = np.random.default_rng(1).normal(size=(types, 8)) * 0.2
    W[4 + np.flatnonzero(swallowed), 0] = 1
    acts = np.zeros((len(token), width))
    acts[np.arange(len(token)), token % 4] = 1 - 1.0 * swallowed[token]
    acts[np.arange(len(token)), 4 + token] = 1
    x = acts @ W + 0.02 * rng.normal(size=(len(token), W.shape[1]))
    unit = np.arange(len(token)) // 50
    examples = Examples(x.astype(np.float32), sp.csr_matrix(acts), {}, unit)
    return Words(examples, token, [text.encode() for text in spelled]), W


def test_absorbed_words_are_counted() -> None:
    (train, W), (held, _) = words(0, absorbed=0.2), words(1, absorbed=0.2)
    found = first_letter_absorption(train, held, W)
    assert set(found["letters"]) == set("abcd")
    assert found["letters"]["a"]["latents"] == [0]
    assert found["letters"]["a"]["silent"] == pytest.approx(0.2, abs=0.12)
    assert found["absorption"]["value"] == pytest.approx(0.2 / 4, abs=0.03)
    assert found["probe_recall"]["value"] > 0.95


def test_nothing_is_absorbed_where_every_letter_has_its_latent() -> None:
    (train, W), (held, _) = words(0, absorbed=0), words(1, absorbed=0)
    assert first_letter_absorption(train, held, W)["absorption"]["value"] == 0
    silent = Words(train.examples, train.token_E, [b"9"] * 400)
    assert first_letter_absorption(silent, silent, W)["absorption"] is None


def test_specificity_rises_with_activation() -> None:
    act = np.arange(101.0)
    assert deciles(act, act > 50) == [0] * 5 + [1] * 5
    assert deciles(act[:9], act[:9] > 3) is None


def test_the_best_latent_of_a_concept_in_closed_form() -> None:
    """It fires on the positives and on as many others: specificity 1/2, sensitivity 1."""
    yes = np.arange(400) % 4 == 0
    acts = np.zeros((400, 3))
    acts[:, 1] = 2.0 * yes + 1.0 * (np.arange(400) % 4 == 1)
    acts[:, 2] = np.arange(400) % 2 == 0
    labels = {"a": np.where(np.arange(400) >= 360, -1, yes).astype(np.int8)}
    both = Examples(
        np.zeros((400, 2), np.float32), sp.csr_matrix(acts), labels, np.arange(400) // 10
    )
    found = concept_latents(both, both, ["a"])["a"]
    assert found["latent"] in (1, 2)
    assert found["train_f1"] == pytest.approx(2 / 3)
    assert found["specificity"]["value"] == pytest.approx(0.5)
    assert found["sensitivity"]["value"] == pytest.approx(1)
    assert found["log_likelihood_ratio"]["value"] == pytest.approx(np.log(2))
    assert found["base_rate"]["tokens"] == 360
    alone = concept_latents(both, both, ["a"])["a"]["activation_share"]["value"]
    assert alone == pytest.approx(2 / 3 if found["latent"] == 1 else 0.5)


def rng() -> np.random.Generator:
    return np.random.default_rng([0, 0])


def test_examples_are_the_stores_rows(
    coder: Coder, store: ActivationStore, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations, codes, tokens and documents stay side by side; a text is the mean of its own."""
    monkeypatch.setattr(concept_data, "TEXT_TOKENS", 8)
    bytes_V = [b" the w%d" % i for i in range(lm.vocab_size)]
    found, texts = token_examples(coder, store, SITE, "heldout", 10**6, frozenset({0}), bytes_V)
    tokens = store.tokens(48, 88).reshape(-1)
    kept = np.flatnonzero(tokens != 0)
    rows = store.rows_of("heldout")
    x = store.read(SITE, rows.start, rows.stop).astype(np.float32)[kept]
    assert np.array_equal(found.token_E, tokens[kept])
    assert np.array_equal(found.examples.x_ED, x)
    acts = found.examples.codes_EF.toarray()
    assert np.allclose(acts, coder.encode(torch.from_numpy(x)).dense().numpy(), atol=1e-6)
    assert set(found.examples.labels["digits"].tolist()) <= {0, 1}
    assert set(found.examples.labels["syntax_keyword"].tolist()) == {-1}
    assert len(found.examples) / 16 < len(texts) < len(found.examples) / 4
    assert np.allclose(texts.x_ED[0], x[:8].mean(0), atol=1e-5)
    assert np.allclose(texts.codes_EF[0].toarray(), acts[:8].mean(0), atol=1e-5)
    assert set(texts.labels["text_code"].tolist()) == {-1}
    assert set(texts.labels["text_language_English"].tolist()) == {1}


def test_the_report_is_plain_json(
    coder: Coder, store: ActivationStore, lm: LanguageModel, tmp_path: Path
) -> None:
    words_of = ("ab", "12", "(x)", "NASA", "x_y")
    bytes_V = [f" {words_of[i % 5]}".encode() for i in range(lm.vocab_size)]
    report = concept_report(coder, store, lm, bytes_V, tokens=4000, controls={"same": coder})
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text) == report
    assert {"digits", "upper_case", "brackets"} <= set(report["probing"])
    same = report["controls"]["same"]
    assert set(same["probing"]) == set(report["probing"])
    for name, found in same["probing"].items():
        assert found["coder"] == report["probing"][name]["coder"]
    assert report["left_out"]["url"] == "0 train positives; it takes 40"
    for name in ("syntax_keyword", "text_syntax_keyword", "text_code"):  # its ids are d0, d1 …
        assert report["left_out"][name] == UNTOLD
    assert set(report["spurious_removal"]) == {"tokens", "texts"}
    assert report["tokens"]["heldout"] > 500
    against = report["against_controls"]
    assert set(against) == {"probing", "latents", "targeted_ablation", "spurious_removal"}
    for metric in ("probing", "latents", "targeted_ablation"):  # a tie is a win of the control
        for found in against[metric].values():
            assert "same" in found["won_by"]
            assert found["lift"]["same"]["low"] == found["lift"]["same"]["high"] == 0
            assert "same" not in found["by_value"]
    entry = report["probing"]["digits"]["coder"]["k1"]
    assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1


def test_who_wins_is_decided_by_the_paired_interval() -> None:
    """A coder that is right a little more often wins where it is right on the same examples too,
    and is undecided against another that is right as often on others."""
    examples = np.full(40, 50.0)
    draw = np.random.default_rng(0)
    right = draw.binomial(50, 0.7, 40) * 1.0
    own = paired_ratio(right, examples, 2000)
    others = {
        "a little worse everywhere": paired_ratio(right - 1, examples, 2000),
        "elsewhere": paired_ratio(draw.permutation(right) - 0.1, examples, 2000),
        "better": paired_ratio(right + 1, examples, 2000),
        "the same": paired_ratio(right.copy(), examples, 2000),
        "read from a file": dict(paired_ratio(right + 1, examples, 2000)),
        "of other documents": paired_ratio(right[:30], examples[:30], 1500),
        "no number": {"value": None, "low": None, "high": None, "tokens": 0},
        "not measured": None,
    }
    found = verdicts(own, others)
    assert set(found["won_by"]) >= {"better", "the same", "read from a file"}
    assert "a little worse everywhere" not in found["won_by"] + found["undecided"]
    assert found["undecided"] == ["elsewhere"]
    assert found["by_value"] == ["read from a file", "of other documents"]
    assert set(found["lift"]) == set(others) - {"no number", "not measured"}
    assert found["lift"]["a little worse everywhere"]["value"] == pytest.approx(1 / 50)
    alone = own["value"] - others["a little worse everywhere"]["value"]
    assert alone < own["high"] - own["low"]  # their own intervals overlap widely
    nothing = verdicts({"value": None, "low": None, "high": None}, others)
    assert nothing == {"won_by": [], "undecided": [], "by_value": [], "lift": {}}


def test_every_score_is_set_against_every_control() -> None:
    """Of reports read from files, which have no pairs, by the values."""

    def report(probe: float, dimension: float, f1: float, tpp: float, scr: float | None) -> dict:
        def entry(value: float | None) -> dict:
            return {"value": value, "low": None, "high": None, "tokens": 9}

        return {
            "probing": {
                "a": {"coder": {"k1": entry(probe)}, "dimensions": {"k1": entry(dimension)}}
            },
            "latents": {"a": {"f1": entry(f1)}},
            "targeted_ablation": {"concepts": ["a"], "n2": {"tpp": entry(tpp)}},
            "spurious_removal": {"tokens": {"pairs": [], "n2": entry(scr)}},
        }

    own = report(0.8, 0.8, 0.5, 0.2, None)
    controls = {"x": report(0.7, 0, 0.6, 0.2, 1), "y": report(0.9, 1, 0, 0, 1)}
    found = against_controls(own, controls)
    assert {
        metric: {what: v["won_by"] for what, v in scores.items()}
        for metric, scores in found.items()
    } == {
        "probing": {"a k1": ["y", "dimensions"]},
        "latents": {"a": ["x"]},
        "targeted_ablation": {"n2": ["x"]},
        "spurious_removal": {"tokens n2": []},
    }
    assert found["probing"]["a k1"]["by_value"] == ["x", "y", "dimensions"]


PYTHON = "import os\n\n\ndef f(x):\n    y = x\n    return y\n\n\nprint(f(os))\n"


@pytest.mark.parametrize(
    ("document", "text", "code"),
    [
        ("python/os:code", "no matter", True),
        ("python/os:prose", PYTHON, False),
        ("src/a.py", "no matter", True),
        ("corpus.jsonl#7", PYTHON, True),
        ("corpus.jsonl#7", PYTHON.replace("):", ")"), None),  # does not parse: nobody knows
        ("corpus.jsonl#7", "x = 1\n" * 9, None),  # as settings do
        ("corpus.jsonl#7", "import os\n", None),
        ("corpus.jsonl#7", "She said: no.\n", None),
        ("corpus.jsonl#7", "(" * 1000, None),
        ("corpus.jsonl#7", "-" * 100_000 + "1", None),
        ("corpus.jsonl#7", "\0" + PYTHON, None),
        ("corpus.jsonl#7", PYTHON + "s = '\\d'\n", True),  # a warning, and no error
        ("code", "no id ends so by chance", None),
    ],
)
def test_what_is_python_is_told_by_its_name_or_by_parsing_it(
    document: str, text: str, code: bool | None
) -> None:
    assert is_code(document, lambda: text) is code


def test_documents_that_parse_have_syntax(
    coder: Coder, store: ActivationStore, lm: LanguageModel
) -> None:
    """On a corpus whose ids say nothing. Every token here spells a whole file of its own."""
    bytes_V = [PYTHON.encode()] * lm.vocab_size
    found, texts = token_examples(coder, store, SITE, "heldout", 10**6, frozenset({0}), bytes_V)
    assert set(found.examples.labels["syntax_keyword"].tolist()) <= {0, 1}
    assert (texts.labels["text_code"] == 1).all()


def test_a_transcoder_is_refused(store: ActivationStore, lm: LanguageModel) -> None:
    transcoder = make_coder("transcoder", 32, 64, k=4)
    transcoder.metadata = {"hook_name": SITE, "hook_name_out": "blocks.0.hook_mlp_out"}
    with pytest.raises(UserError, match="one site; this coder reads"):
        concept_report(transcoder, store, lm, [b"x"] * lm.vocab_size)
