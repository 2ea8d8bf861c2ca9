"""What is shown and tested: the right split, the right side, the right marks."""

import json

import numpy as np
import pytest

from sae.explain.passages import CLOSE, OPEN, Gatherer, Material
from sae.features import FeatureIndex
from tests.explain.conftest import WORDS
from tests.explain.stub import MARKED

WORD = " return"  # of feature 0, which fires wherever it stands


@pytest.fixture(scope="module")
def material(index: FeatureIndex) -> Material:
    found = Gatherer(index).material(0)
    assert found is not None
    return found


def test_shown_are_marked_and_strongest_first(material: Material) -> None:
    assert 10 <= len(material.shown) <= 20
    assert {one for passage in material.shown for one in MARKED.findall(passage.text)} == {WORD}
    strengths = [passage.strength for passage in material.shown]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] == 10
    assert min(strengths) >= 1


def test_detection_is_of_whole_windows(material: Material) -> None:
    truths = [passage.truth for passage in material.detection]
    assert sum(truths) * 2 == len(truths) >= 20
    for passage in material.detection:
        assert (WORD in passage.text) == passage.truth
        assert OPEN not in passage.text
    assert truths != sorted(truths, reverse=True)


def test_fuzzing_is_told_by_the_marks_alone(material: Material) -> None:
    truths = [passage.truth for passage in material.fuzzing]
    assert sum(truths) * 2 == len(truths) >= 20
    for passage in material.fuzzing:
        found = MARKED.findall(passage.text)
        assert found
        assert WORD in passage.text
        assert all((WORD in one) == passage.truth for one in found)


def test_shown_are_of_the_train_split_and_tested_are_held_out(
    index: FeatureIndex, material: Material
) -> None:
    gatherer = Gatherer(index)
    rows = index.slices(0)[0].astype(np.int64)
    boundary = index.meta["splits"]["train"][1] * index.context

    def texts(rows: np.ndarray) -> set[str]:
        return {gatherer._text(window) for window in gatherer._windows(rows, 0)}

    train, heldout = texts(rows[rows < boundary]), texts(rows[rows >= boundary])
    assert not train & heldout
    plain = [p.text.replace(OPEN, "").replace(CLOSE, "") for p in material.shown]
    assert set(plain) <= train
    assert {p.text for p in material.detection if p.truth} <= heldout
    tested = [p.text.replace(OPEN, "").replace(CLOSE, "") for p in material.fuzzing]
    assert set(tested) <= heldout


def test_hostile_text_stays_text(index: FeatureIndex) -> None:
    gatherer = Gatherer(index)
    for feature in range(index.width):
        found = gatherer.material(feature)
        if found is None:
            continue
        for passage in (*found.shown, *found.fuzzing):
            assert passage.text.count(OPEN) == passage.text.count(CLOSE) > 0
            json.dumps(passage.text, ensure_ascii=False).encode()


def test_the_same_again_and_otherwise_with_another_seed(index: FeatureIndex) -> None:
    feature = WORDS[1]
    first, second = (Gatherer(index).material(feature) for _ in range(2))
    assert first == second
    assert Gatherer(index, seed=1).material(feature) != first
    few = Gatherer(index, passages=12).material(feature)
    assert few is not None
    assert len(few.detection) == 12
    assert isinstance(np.mean([p.truth for p in few.detection]), float)
