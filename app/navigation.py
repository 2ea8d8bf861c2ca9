"""The pages of the browser, in the order of the menu; a new page is one more line here."""

from typing import NamedTuple


class PageSpec(NamedTuple):
    """A page: its script, path in the URL, title, icon, and what it is for."""

    script: str
    path: str
    title: str
    icon: str
    help: str


PAGES = (
    PageSpec(
        "pages_/overview.py",
        "overview",
        "Overview",
        ":material/space_dashboard:",
        "How good the coder is, and some of its features to start with.",
    ),
    PageSpec(
        "pages_/features.py",
        "features",
        "Features",
        ":material/table_rows:",
        "All features in a table: sort, filter, open, export.",
    ),
    PageSpec(
        "pages_/feature.py",
        "feature",
        "Feature",
        ":material/target:",
        "One feature: where it fires, what it promotes, which features are near it.",
    ),
    PageSpec(
        "pages_/prompt.py",
        "prompt",
        "Prompt",
        ":material/edit_note:",
        "Type a text and see which features fire on each of its tokens.",
    ),
)
