"""Writes `docs/gallery.md`: features of finished runs with their labels and examples.

    python -m pipelines.gallery docs/gallery.md runs/demo runs/books

Only a few words around each firing are quoted.
"""

import argparse
from pathlib import Path

from sae.features.gallery import interesting
from sae.features.index import FeatureIndex
from sae.features.windows import Example

FEATURES = 24  # per run
EXAMPLES = 4  # per feature
CONTEXT = 6  # tokens before and after


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a gallery of features.")
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    parts = [INTRODUCTION]
    for run in given.runs:
        index = FeatureIndex.open(sorted((run / "features").iterdir())[-1])
        parts.append(section(index))
    given.out.write_text("\n".join(parts))


INTRODUCTION = """# Gallery

Features of coders of pocket-gpt2, as `make gallery` found them; no one chose or named them
by hand. Four sorts of labels take turns (a class of tokens, tokens in a context, a list of tokens,
a context); within each come the best labels first, of features that do not resemble each other.
The label is a rule induced on training text; its score is the F1 of that rule on held-out
text, on balanced samples and for strong firings (see [formats](formats.md)): a baseline, not a
judgement, and, since features are chosen by it, higher than it would be on other text. In the
examples, **bold** is where the feature fires, with its activation.
"""


def section(index: FeatureIndex) -> str:
    meta = index.meta
    lines = [
        f"## `{meta['coder']}` at `{meta['site']}`, text: {_source(meta)}\n",
        f"{meta['d_sae']:,} latents, {meta['tokens']:,} tokens indexed.\n",
    ]
    table = index.table.assign(star=False)  # as people's notes have left it alone
    for feature in interesting(index, table, FEATURES):
        row = table.loc[feature]
        score = "-" if row["label_score"] != row["label_score"] else f"{row['label_score']:.2f}"
        lines.append(f"### {feature}: {_escaped(str(row['label']))}\n")
        lines.append(
            f"fires on {row['density']:.2%} of tokens · held-out F1 {score} · promotes "
            + ", ".join(f"`{_code(t)}`" for t in index.vocabulary.display(row["promoted_ids"][:5]))
            + "\n"
        )
        for example in index.examples(feature, "top", EXAMPLES, context=CONTEXT):
            lines.append(f"- {quote(index, example)} ({example.activation:.1f})")
        lines.append("")
    return "\n".join(lines)


def quote(index: FeatureIndex, example: Example) -> str:
    """The window on one line, the focus in bold, whitespace made visible."""
    window = example.window
    texts = index.vocabulary.display(window.token_ids)
    focus = example.row - window.start_row
    parts = [_escaped(text) for text in texts]
    parts[focus] = f" **{parts[focus].strip() or '␣' * len(parts[focus])}** "
    return "".join(parts).strip()


def _source(meta: dict) -> str:
    source = str(meta["corpus"].get("source", ""))
    return source if source == "python" else Path(source).name


def _escaped(text: str) -> str:
    visible = text.replace("\n", "↵").replace("\t", "⇥")
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in visible)


def _code(text: str) -> str:
    return text.replace("\n", "↵").replace("`", "ˋ")


if __name__ == "__main__":
    main()
