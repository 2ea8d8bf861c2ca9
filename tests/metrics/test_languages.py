"""Languages of short texts, and texts of which nothing should be said."""

import pytest

from sae.metrics.languages import FUNCTION_WORDS, language_of

TEXTS = {
    "English": "When the ship came into the harbour, all of them were waiting for what it would bring.",
    "German": "Als das Schiff in den Hafen kam, war es noch früh, und nur einer von uns stand auf der Mauer.",
    "French": "Le bateau est entré dans le port, et tout le monde a vu que les voiles étaient noires.",
    "Spanish": "El barco entró en el puerto por la mañana, y todos los que lo vieron se fueron con él.",
    "Italian": "La nave è entrata nel porto con la luce del mattino, e non si vedeva più che una vela.",
    "Portuguese": "O navio chegou ao porto com a luz da manhã, e não havia mais do que uma vela no mar.",
    "Dutch": "Het schip kwam in de haven toen er nog niemand op de kade was, en dat is wat ik heb gezien.",
    "Latin": "Navis in portum venit, sed non omnes qui eam viderunt et cum nautis ad terram ierunt felices sunt.",
}


def test_every_language_is_tried() -> None:
    assert set(TEXTS) == set(FUNCTION_WORDS)


@pytest.mark.parametrize("language", TEXTS)
def test_a_sentence_is_of_its_language(language: str) -> None:
    assert language_of(TEXTS[language]) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "of the and",
        "def add(a, b): total = fix(a, width) + scale; return frame.rows[total] or numpy.zeros(width)",
        "Anna Berta Carla Dora Emil Friedrich Gustav Heinrich Ida Julius Kaufmann",
    ],
)
def test_where_it_cannot_be_told_nothing_is_said(text: str) -> None:
    assert language_of(text) is None
