"""Odd values, and ways to get them into bytes, text and trees of JSON."""

import json
import re
import string
from collections.abc import Callable
from random import Random
from typing import Any

INTS = (
    *(0, 1, -1, 2, 3, 127, 255, 256, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, -(2**31), 2**32),
    *(2**32 - 1, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64, 10**30),
)
FLOATS = (0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"))
OUTSIDE = "outside"
"""A folder beside that of the case, which nothing may read."""
PATHS = (
    *(f"{'../' * depth}{OUTSIDE}/secret" for depth in range(1, 6)),
    *("..", ".", "/", "a/b", "a\\b", "/dev/zero", "/proc/self/environ", "C:\\x"),
)
TEXTS = (
    "",
    " ",
    "\0",
    "\ud800",
    "é" * 300,
    "x" * 20_000,
    "nan",
    "-1",
    "1e999",
    "\n",
    "%s{0}",
    "\x1b[2J",
)
DEEP = "@@deep@@"
"""Becomes brackets within brackets when a tree is written: deeper than any recursion goes."""


def odd_int(rng: Random, old: int = 0) -> int:
    near = (old + 1, old - 1, -old, 2 * old, old * 1_000_003, old // 2)
    return rng.choice(near) if rng.random() < 0.4 else rng.choice(INTS)


def odd_text(rng: Random, old: str = "") -> str:
    if old and rng.random() < 0.4:
        at = rng.randrange(len(old))
        pieces = (old[:at], old[at:], old + "x", old.upper(), old[:at] + "\0" + old[at:], old * 50)
        return rng.choice(pieces)
    return rng.choice(PATHS if rng.random() < 0.4 else TEXTS)


def odd_value(rng: Random, old: Any = None) -> Any:
    """Another value in the place of `old`: of its own type half the time."""
    if rng.random() < 0.5:
        if isinstance(old, bool):
            return not old
        if isinstance(old, int):
            return odd_int(rng, old)
        if isinstance(old, float):
            return rng.choice((*FLOATS, -old, old * 1e30))
        if isinstance(old, str):
            return odd_text(rng, old)
        if isinstance(old, list):
            return rng.choice(([], old[:-1], old * 2, old[::-1], [old], old * 300))
        if isinstance(old, dict):
            return rng.choice(({}, [old], list(old), dict(list(old.items())[1:])))
    made: Callable[[], Any] = rng.choice(
        (
            lambda: None,
            lambda: rng.random() < 0.5,
            lambda: odd_int(rng),
            lambda: rng.choice(FLOATS),
            lambda: odd_text(rng),
            lambda: [old],
            lambda: {"a": old},
            list,
            dict,
            lambda: [odd_int(rng), odd_text(rng)],
            lambda: str(old),
            lambda: DEEP,
        )
    )
    return made()


def mutate_tree(tree: Any, rng: Random) -> Any:
    """A copy of a tree of JSON with one to three nodes changed, taken away or added."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(tree)
        if not places:
            return odd_value(rng, tree)
        holder, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            holder[key] = odd_value(rng, holder[key])
        elif kind < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[odd_text(rng, str(key))] = holder[key]
        else:
            holder.insert(rng.randrange(len(holder) + 1), odd_value(rng, holder[key]))
    return odd_value(rng, tree) if rng.random() < 0.03 else tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(holder, key) of every node below the root; of long lists a few elements."""
    found: list[tuple[Any, Any]] = []
    rest = [tree]
    while rest:
        holder = rest.pop()
        if isinstance(holder, dict):
            keys: list[Any] = list(holder)
        elif isinstance(holder, list):
            keys = list(range(min(len(holder), 6)))
        else:
            continue
        for key in keys:
            found.append((holder, key))
            rest.append(holder[key])
    return found


def deepened(text: str, rng: Random) -> str:
    depth = rng.choice((60, 600, 5_000, 200_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    return text.replace(f'"{DEEP}"', opened * depth + "1" + closed * depth)


def mutate_json(data: bytes, rng: Random) -> bytes:
    text = json.dumps(mutate_tree(json.loads(data), rng), indent=rng.choice((None, 1)))
    return deepened(text, rng).encode("utf-8", "surrogatepass")


def mutate_json_lines(data: bytes, rng: Random) -> bytes:
    lines = data.splitlines() or [b"{}"]
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(lines[at], rng) if rng.random() < 0.8 else mutate_text(lines[at], rng)
    return b"\n".join(lines) + b"\n"


TOKENS = (
    *("&a ", "*a", "!!python/object/apply:os.system ['touch x']\n", "!!binary ", "!!timestamp "),
    *("!!set ", "!!int ", "? ", "<<: ", "- ", "{", "}", "[", "]", "|", ">", "%YAML 9\n", "---\n"),
    *(
        "2001-99-99",
        "1:2:3:4",
        "0x_",
        "0b",
        ".nan",
        ".inf",
        "~",
        "'",
        '"',
        "\t",
        "\u2028",
        "#",
        "@",
    ),
    *("&a [*a]", "&a [x, x, x, x]", "[*a, *a, *a]", "1" * 5000, "1e99999", "=", ":", "..", "`"),
)


def mutate_text(data: bytes, rng: Random) -> bytes:
    """Lines, numbers and words changed as in a hand-written file."""
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        line = lines[at]
        how = rng.randrange(7)
        if how == 0:
            cut = rng.randrange(len(line) + 1)
            lines[at] = line[:cut] + rng.choice(TOKENS) + line[cut:]
        elif how == 1:
            lines[at] = re.sub(r"\d+", lambda m: str(odd_int(rng, int(m[0][:50]))), line)
        elif how == 2:
            lines.insert(at, rng.choice(lines))
        elif how == 3:
            del lines[at]
        elif how == 4:
            key, colon, value = line.partition(rng.choice(":= "))
            lines[at] = f"{key}{colon} {_scalar(rng, value)}"
        elif how == 5:
            lines[at] = " " * rng.choice((1, 2, 3, 8)) + line
        else:
            cut = rng.randrange(len(line) + 1)
            lines[at] = line[:cut] + rng.choice(string.printable) + line[cut + 1 :]
        text = "\n".join(lines)
    if rng.random() < 0.02:
        text = rng.choice("[{") * rng.choice((1_000, 100_000)) + text
    return text.encode("utf-8", "surrogatepass" if "\ud800" in text else "surrogateescape")


def _scalar(rng: Random, old: str) -> str:
    value = odd_value(rng, old)
    return value if isinstance(value, str) and rng.random() < 0.5 else deepened(_json(value), rng)


def _json(value: Any) -> str:
    return json.dumps(value)


def mutate_bytes(data: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Flips, cuts, splices, and integers of every width that promise too much."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        how = rng.randrange(9)
        at = rng.randrange(len(raw) + 1)
        if how == 0 and raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        elif how == 1:
            del raw[at:]
        elif how == 2:
            del raw[at : at + rng.choice((1, 2, 4, 8, 64, 1024))]
        elif how == 3:
            raw[at:at] = rng.randbytes(rng.choice((1, 4, 32, 1000)))
        elif how == 4 and raw:
            start = rng.randrange(len(raw))
            raw[at:at] = raw[start : start + rng.choice((4, 64, 1024))]
        elif how == 5 and other:
            start = rng.randrange(len(other))
            raw[at : at + rng.choice((0, 64))] = other[start : start + rng.choice((8, 64, 2048))]
        elif how == 6:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(INTS) % 256**width
            raw[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif how == 7 and raw:
            raw[at % len(raw)] = rng.choice((0, 0x7F, 0x80, 0xFF, ord("9"), rng.randrange(256)))
        elif how == 8:
            raw[at : at + 64] = bytes(64)
        if rng.random() < 0.02:
            raw.clear()
    return bytes(raw)
