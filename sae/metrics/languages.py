"""Which language a stretch of text is in, by its function words.

Articles, pronouns and prepositions make up a good third of running text in any of these languages,
and few are shared between them; that is enough for stretches of some thirty words, and offline.
"""

import re

FUNCTION_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "English": (
            "the of and to in is that it was he for with as his on be at by had this not "
            "are but from or have they which you were her she all would there their we him "
            "been has when who will more if an my than them what so"
        ),
        "German": (
            "der die und das in den von zu ist mit sich des auf für nicht ein dem eine als "
            "es ich im auch er an sie war werden aus bei noch wie einen nach wird nur oder "
            "einer um aber man so hat wenn doch kein sind dass"
        ),
        "French": (
            "de la le et les des en un une du dans que est pour qui sur par plus pas au il "
            "ne se ce avec son cette sont mais comme ou elle je vous nous ses aux était "
            "leur être tout"
        ),
        "Spanish": (
            "de la que el en y los se del las un por con no una su para es al lo como más o "
            "pero sus le ha me si sin sobre este entre cuando muy era también hasta hay "
            "donde"
        ),
        "Italian": (
            "di e il la che in un a per è una sono non con del si le dei della nel al da i "
            "gli come alla più lo ma ed delle anche era suo questo ha se cui o nella"
        ),
        "Portuguese": (
            "de a o que e do da em um para com não uma os no se na por mais as dos como mas "
            "ao ele das à seu sua ou quando muito nos já eu também só pelo pela até isso"
        ),
        "Dutch": (
            "de en het van een in is dat op te zijn met voor niet aan er om ook als door "
            "maar bij uit naar hij dan nog heeft werd of over haar ze hebben wordt zich "
            "deze"
        ),
        "Latin": (
            "et in est non ad ut cum quod qui si sed ex quae ac per ab enim esse autem quam "
            "hoc atque aut sunt nec de quid etiam tamen eius"
        ),
    }.items()
}
LEAST = 0.2  # share of the words that must be function words of the language
AHEAD = 1.5  # times as many as of any other language: some words are of several
FEWEST = 8  # words; of fewer nothing is said
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str | None:
    """The language of a text, or None where that cannot be told (code, a list of names, ...)."""
    words = _WORD.findall(text.lower())
    if len(words) < FEWEST:
        return None
    counts = {name: sum(w in own for w in words) for name, own in FUNCTION_WORDS.items()}
    best, second = sorted(counts, key=lambda name: -counts[name])[:2]
    if counts[best] < LEAST * len(words) or counts[best] < AHEAD * counts[second]:
        return None
    return best
