"""Languages of short texts, and texts of which nothing should be said."""

import pytest

from sae.metrics.languages import FUNCTION_WORDS, language_of

TEXTS = {
    "English": "When the ship came into the harbour, all of them waited for what it would bring.",
    "German": "Als das Schiff in den Hafen kam, war es noch früh, und nur einer von uns sah es.",
    "French": "Le bateau est entré dans le port, et tout le monde a vu que les voiles sont noires.",
    "Spanish": "El barco entró en el puerto por la tarde, y todos los que lo vieron se fueron.",
    "Italian": "La nave è entrata nel porto con la luce del giorno, e non si vedeva una vela.",
    "Portuguese": "O navio chegou ao porto com a luz da manhã, e não há mais do que uma vela.",
    "Dutch": "Het schip kwam in de haven toen er nog niemand was, en dat is wat ik heb gezien.",
    "Latin": "Navis in portum venit, sed non omnes qui eam viderunt et cum nautis sunt felices.",
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
        "def add(a, b): total = fix(a, width); return frame.rows[total] or zeros(width)",
        "Anna Berta Carla Dora Emil Friedrich Gustav Heinrich Ida Julius Kaufmann",
    ],
)
def test_where_it_cannot_be_told_nothing_is_said(text: str) -> None:
    assert language_of(text) is None
