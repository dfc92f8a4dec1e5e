"""Values that a file or an argument may have and that no one expects."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Text that is written as it is, where a value would be."""

    text: str


DEPTHS = (5, 40, 150, 400, 1500, 20_000)
TEXTS = (
    "",
    " ",
    "a",
    "é",
    "x" * 300,
    "x" * 100_000,
    "\x1b[31mred\x1b[0m",
    "bell\x07",
    "\x9b31m",
    "\ud800",
    "a\udcffb",
    "\udfff\ud800",
    "\u202eabc",
    "\u2028",
    "\ufeff",
    "\ufffe",
    "\0",
    "\x7f",
    "a\nb",
    "a\r\nb",
    "\t",
    "%s %d %(x)s",
    "{}",
    "{0}",
    "{x.__class__}",
    "{",
    "}{",
    "{answer}",
    "{answer!r:>{words}}",
    "<|VIRTUAL_PROMPT_0|>",
    "<|VIRTUAL_PROMPT_99999999999999999999|>",
    "${a}",
    "${model.x}",
    "${oc.env:HOME}",
    "${.}",
    "$HOME",
    "$(x)",
    "~",
    "~nobody/x",
    ".",
    "..",
    "-",
    "--help",
    "../" * 60,
    "a/" * 3000,
    "1e5",
    "nan",
    "inf",
    "null",
    "[",
    "9" * 5000,
    "𝟙𝟚",
    "²",
    "١٢",
)
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    7,
    0.0,
    -0.0,
    0.5,
    -1.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**18,
    10**30,
    10**308,
    10**309,
    10**4000,
)
PLAIN: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [{}],
    {"": ""},
    [None],
    {"a": None},
    ["a", 1, None],
    [1] * 300,
)
# Files that `special_files` makes, and those of every machine.
PLACES = (
    "fifo",
    "loop",
    "folder",
    "zeros",
    "dangling",
    "closed",
    "empty",
    "binary",
    "socket",
    "n" * 256,
    "/proc/none/x",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "/dev/null/x",
    "odd-\udcff\udcfe",
)


def number(rng: Random) -> Any:
    if rng.random() < 0.7:
        return rng.choice(NUMBERS)
    return rng.choice(
        (rng.randint(-10, 10), rng.randint(-(2**70), 2**70), rng.uniform(-1, 1), 10 ** rng.randint(0, 40))
    )


def text(rng: Random) -> str:
    if rng.random() < 0.75:
        return rng.choice(TEXTS)
    characters = ((32, 126), (0, 0x2FF), (0, 0x10FFFF))
    return "".join(chr(rng.randint(*rng.choice(characters))) for _ in range(rng.randint(1, 12)))


def value(rng: Random) -> Any:
    """Any of them that every format has."""
    kind = rng.random()
    if kind < 0.3:
        return number(rng)
    if kind < 0.65:
        return text(rng)
    if kind < 0.8:
        return copy.deepcopy(rng.choice(PLAIN))
    if kind < 0.9:
        return rng.choice(PLACES)
    return [value(rng)] if rng.random() < 0.5 else {key(rng): value(rng)}


def key(rng: Random) -> str:
    return rng.choice(("a", "name", "__class__", "__init__", "version", "<<", text(rng)))


def yaml_value(rng: Random) -> Any:
    """Or one that only YAML has."""
    return Raw(rng.choice(_YAML)(rng)) if rng.random() < 0.35 else value(rng)


def json_value(rng: Random) -> Any:
    return Raw(rng.choice(_JSON)(rng)) if rng.random() < 0.3 else value(rng)


def bomb(levels: int = 9, width: int = 9) -> str:
    """Aliases of aliases, width ** levels entries in all."""
    names = [f"b{level}" for level in range(levels)]
    first = f"&b0 [{', '.join(['x'] * width)}]"
    rest = [f"&{name} [{', '.join([f'*{before}'] * width)}]" for before, name in itertools.pairwise(names)]
    return f"[{', '.join([first, *rest])}]"


def merge_bomb(levels: int = 12, width: int = 6) -> str:
    """The same of merged mappings."""
    rest = [f"&m{i + 1} {{<<: [{', '.join([f'*m{i}'] * width)}], k{i}: 1}}" for i in range(levels)]
    return f"[{', '.join(['&m0 {k: 1}', *rest])}]"


def _fixed(*texts: str) -> Any:
    return lambda rng: rng.choice(texts)


_YAML: tuple[Any, ...] = (
    lambda rng: "[" * (depth := rng.choice(DEPTHS)) + "]" * depth,
    lambda rng: "{a: " * (depth := rng.choice(DEPTHS)) + "1" + "}" * depth,
    lambda rng: "[" * rng.choice(DEPTHS),
    lambda rng: bomb(rng.randint(3, 10)),
    lambda rng: merge_bomb(rng.randint(3, 14)),
    _fixed("9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "0b" + "1" * 20_000, "9" * 5000 + ".5", "0" + "7" * 9000),
    _fixed(
        "1:" * 3000 + "1", "190:20:30", "1:" * 400 + "1.5", "1_000", "0o17", "+12", "1e400", "-.inf", ".nan", ".NaN"
    ),
    _fixed("2024-01-01", "2024-13-45", "0001-01-01T00:00:00+23:59", "9999-12-31 23:59:59 -23:59", "0000-00-00"),
    _fixed("2001-12-14t21:59:43.10-99:00", "2001-12-14 21:59:43.123456789012", "2024-02-30"),
    _fixed("!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]"),
    _fixed("!!timestamp x", "!!int x", "!!int ''", "!!float x", "!!bool x", "!!null x", "!!str [a]", "!!map [a]"),
    _fixed("!!pairs [a: 1, a: 2]", "!!seq {a: 1}", "!x y", "!<tag:x> y", "!!merge <<", "!!value ="),
    _fixed("&x [*x]", "&x {a: *x}", "{<<: *y}", "*nothing", "&a", "&x {<<: *x}", "&k {*k : 1}", "{&a a: *a}"),
    _fixed(
        "{<<: 5}",
        "{<<: [1, 2]}",
        "{<<: {a: 1}, <<: {b: 2}}",
        "{? {a: 1} : 2}",
        "{? [a] : 2}",
        "{[1]: 2}",
        "{1: 2, 1.0: 3, true: 4}",
    ),
    _fixed(
        "{null: 1}",
        "{~: 1, 2024-01-01: 2}",
        "{.nan: 1, .nan: 2}",
        "{a: 1, a: 2}",
        "{=: 1}",
        "=",
        "@x",
        "`x",
        "%x",
        "|",
        ">-",
    ),
    _fixed(
        '"\\uD800"',
        '"\\uDFFF\\uD800"',
        '"\\x1b[31m"',
        '"\\a"',
        '"\\u009b"',
        '"\\0"',
        '"\\UFFFFFFFF"',
        '"\\U00110000"',
        '"\\q"',
    ),
    _fixed("'" + "x" * 1_000_000 + "'", '"open', "'open", "- - - -", "a: b: c", "\x07", "\x1b", "\x85", "\u2028"),
)
_JSON: tuple[Any, ...] = (
    lambda rng: "[" * (depth := rng.choice(DEPTHS)) + "]" * depth,
    lambda rng: '{"a":' * (depth := rng.choice(DEPTHS)) + "1" + "}" * depth,
    lambda rng: "[" * rng.choice(DEPTHS),
    _fixed(
        "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E-999", "9" * 5000, "-" + "9" * 5000, "9" * 5000 + ".5"
    ),
    _fixed(
        '"\\ud800"',
        '"\\udcff\\ud800"',
        '"\\u001b[31m"',
        '"\\u0007"',
        '"\\u009b"',
        '"\\u0000"',
        '"\\x"',
        '"\x1b"',
        "'a'",
    ),
    _fixed(
        '{"a": 1, "a": 2}', '{"": {"": ""}}', "[1,]", "{,}", "nul", "", '"open', "0x10", "01", "+1", "/* */ 1", "1 2"
    ),
    _fixed("[" + "1," * 200_000 + "1]", '"' + "x" * 1_000_000 + '"', '{"\\ud800": 1}', '{"\\u001b[31m": 1}'),
)
