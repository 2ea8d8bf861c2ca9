"""Folding of near-duplicate texts with a bottom-k sketch of their lines.

Broder, "On the resemblance and containment of documents" (1997): the k smallest hashes of a
set's elements are a uniform sample of it, so two texts' resemblance (Jaccard index of their
line sets) can be estimated from their sketches alone.
"""

from zlib import crc32

SKETCH = 64
BANDS = 8


def sketch(text: str) -> tuple[int, ...]:
    """The `SKETCH` smallest hashes of the text's distinct stripped lines (4 characters or more)."""
    lines = {crc32(line.strip().encode()) for line in text.splitlines() if len(line.strip()) > 3}
    return tuple(sorted(lines)[:SKETCH])


def resemblance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Estimated Jaccard index of the two texts' sets of lines, in [0, 1]."""
    union = sorted(set(a) | set(b))[:SKETCH]
    if not union:
        return 1.0
    shared = set(a) & set(b)
    return sum(h in shared for h in union) / len(union)


class NearDuplicates:
    """Remembers what it has seen; `seen(text)` is true for a text 80 % alike to an earlier one.

    Candidates share one of the `BANDS` smallest line hashes: two texts of resemblance 0.8 miss
    each other there with a probability under 1e-4.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._by_hash: dict[int, list[tuple[int, ...]]] = {}

    def seen(self, text: str) -> bool:
        own = sketch(text)
        for smallest in own[:BANDS]:
            for other in self._by_hash.get(smallest, ()):
                if resemblance(own, other) >= self.threshold:
                    return True
        for smallest in own[:BANDS]:
            self._by_hash.setdefault(smallest, []).append(own)
        return False
