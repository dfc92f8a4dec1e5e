"""What YAML means here, and that every value has its line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpclm.core.errors import RecipeError
from hpclm.recipe.tree import parse, resolve_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("-3", -3),
        ("+7", 7),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("nan", "nan"),
        (".inf", ".inf"),
        ("e5", "e5"),
        ("9" * 30, float("9" * 30)),
        ("9" * 300, "9" * 300),
    ],
)
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    resolved = resolve_scalar(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_quotes_make_text() -> None:
    tree = parse("a: '5'\nb: \"true\"\nc: |\n  1\n", "f.yaml")
    assert tree.plain() == {"a": "5", "b": "true", "c": "1\n"}


def test_every_value_knows_the_line_of_its_key() -> None:
    tree = parse("a: 1\n\n# a comment\nb:\n  c: [1,\n    2]\n  d: {e: 5,\n    f: 6}\ng: |\n  text\nh: 1\n", "f.yaml")

    def line(*keys: str | int) -> str:
        return tree.where(*keys).origin

    assert line("a") == "f.yaml:1"
    assert line("b") == "f.yaml:4"
    assert line("b", "c") == "f.yaml:5"
    assert line("b", "c", 1) == "f.yaml:6"
    assert line("b", "d", "f") == "f.yaml:8"
    assert line("g") == "f.yaml:9"
    assert line("h") == "f.yaml:11"


def test_what_is_not_written_has_the_place_around_it() -> None:
    tree = parse("a: 1\nb:\n  c: 2\n", "f.yaml")
    assert str(tree.where("b", "x", "y")) == "f.yaml:2 x.y"


def test_anchors_bring_values_with_their_own_lines() -> None:
    tree = parse("base: &b {x: 1, y: 2}\nnext: {<<: *b, y: 3}\nboth:\n  <<: [*b, {x: 5, z: 6}]\n", "f.yaml")
    assert tree.plain()["next"] == {"x": 1, "y": 3}
    assert tree.plain()["both"] == {"x": 1, "y": 2, "z": 6}
    assert tree.where("next", "x").origin == "f.yaml:1"
    assert tree.where("next", "y").origin == "f.yaml:2"


def test_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    from hpclm.recipe.tree import read_tree

    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffa: 1\r\nb: x\r\n".encode())
    assert read_tree(path)[1].plain() == {"a": 1, "b": "x"}


_SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text("ab :#'\"{}[]&*!|>%@`\n-", max_size=12)
_KEYS = st.text("abc_", min_size=1, max_size=6)


@given(st.dictionaries(_KEYS, st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=8)))
def test_what_pyyaml_writes_is_read_back(value: dict[str, Any]) -> None:
    def tuples(item: Any) -> Any:
        return tuple(map(tuples, item)) if isinstance(item, list) else item

    text = yaml.safe_dump(value, allow_unicode=True)
    # Within lists of one object PyYAML uses anchors of its own, which are read too.
    assert parse(text, "f").plain() == {key: tuples(item) for key, item in value.items()}


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    # Any other exception fails the test.
    with contextlib.suppress(RecipeError):
        parse(text, "f.yaml")
