"""Commands as they are shown to be copied."""

import shlex


def command(*words: object) -> str:
    """`sae` with these words, quoted where a shell needs it: a folder's name may hold a space."""
    return shlex.join(["sae", *map(str, words)])
