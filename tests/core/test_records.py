"""What comes back from JSON is checked: keys, types and places."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclm.core.failures import Action
from hpclm.core.records import from_dict, taken, to_dict
from hpclm.core.spec import ModelSpec, OptimSpec, RecoverySpec, TrainerSpec

GPT = ModelSpec(2, 8, 32, 2, 2, 4, 16, 64, 64)


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    action: Action = Action.AGAIN
    kind: Literal["a", "b"] = "a"
    interval: int | float = 1
    parts: tuple[Inner, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    pair: tuple[int, int] | None = None


def test_a_record_comes_back_as_it_was() -> None:
    made = Outer("x", Inner(3), Action.STOP, "b", 0.25, (Inner(1), Inner(2, 1.0)), {"k": "v"}, (8, 0))
    assert from_dict(Outer, json.loads(json.dumps(to_dict(made)))) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 5}, "Outer.name: must be text, not 5"),
        ({"inner": {"count": "3"}}, "Outer.inner.count: must be a whole number, not '3'"),
        ({"inner": {"count": True}}, "Outer.inner.count: must be a whole number, not True"),
        ({"inner": {"count": 1, "share": "much"}}, "Outer.inner.share: must be a number, not 'much'"),
        ({"inner": []}, "Outer.inner: must be an object, not []"),
        ({"inner": {}}, "Outer.inner: count is missing"),
        ({"kind": "c"}, "Outer.kind: 'c' is not one of a, b"),
        ({"action": "sleep"}, "Outer.action: 'sleep' is not one of again, requeue, stop"),
        ({"parts": [{"count": 1}, 7]}, "Outer.parts[1]: must be an object, not 7"),
        ({"parts": "x"}, "Outer.parts: must be a list, not 'x'"),
        ({"notes": {"k": 1}}, "Outer.notes.k: must be text, not 1"),
        ({"pair": [1]}, "Outer.pair: 2 values are required, not 1"),
        ({"interval": None}, "Outer.interval: null is not allowed"),
        ({"extra": 1}, "Outer: unknown key extra"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(change: dict[str, object], said: str) -> None:
    raw = {"name": "x", "inner": {"count": 1}, **change}
    with pytest.raises(ValueError, match="Outer") as caught:
        from_dict(Outer, raw)
    assert said in str(caught.value)


def test_a_steps_interval_stays_a_whole_number_and_an_epochs_a_fraction() -> None:
    assert type(from_dict(Outer, {"name": "x", "inner": {"count": 1}, "interval": 1}).interval) is int
    assert type(from_dict(Outer, {"name": "x", "inner": {"count": 1}, "interval": 1.0}).interval) is float


def test_what_a_later_version_adds_is_passed_over_where_that_is_safe() -> None:
    raw = {"name": "x", "inner": {"count": 1, "later": 2}, "later": []}
    assert from_dict(Outer, raw, ignore_unknown=True) == Outer("x", Inner(1))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([ModelSpec, OptimSpec, RecoverySpec, TrainerSpec]), st.data())
def test_no_json_makes_a_record_of_wrong_types(
    cls: type[ModelSpec | OptimSpec | RecoverySpec | TrainerSpec], data: st.DataObject
) -> None:
    """Either a ValueError, or a record that is equal to itself through JSON."""
    known = to_dict(GPT) if cls is ModelSpec else {"lr": 1e-3, "precision": "fp32"}
    keys = list(cls.__dataclass_fields__)
    raw = {key: known[key] for key in keys if key in known}
    raw[data.draw(st.sampled_from(keys))] = data.draw(json_values)
    try:
        made = from_dict(cls, raw)
    except ValueError:
        return
    assert from_dict(cls, json.loads(json.dumps(to_dict(made)))) == made


def test_keys_are_taken_by_their_names() -> None:
    class Section:
        lr, min_lr, weight_decay, epsilon = 1e-3, 0.0, 0.1, 1e-8

    made = taken(OptimSpec, Section(), beta1=0.9, beta2=0.95)
    assert (made.lr, made.weight_decay, made.beta2, made.schedule) == (1e-3, 0.1, 0.95, "cosine")
    with pytest.raises(TypeError):
        taken(ModelSpec, Section())
