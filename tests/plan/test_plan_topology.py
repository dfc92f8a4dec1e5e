"""Ranks, coordinates and nodes, for every split there is."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclm.core.nearest import closest, divisors, either, multiples
from hpclm.core.parallel_spec import RankOrder
from hpclm.core.vocabulary_size import padded_vocab_size
from hpclm.planning.topology import RankPlace, Topology

AXES = ("tensor", "context", "data", "pipeline")


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any split of up to 4096 ranks over any nodes that hold them."""
    tensor, pipeline, data = (draw(st.integers(1, 16)) for _ in range(3))
    context = draw(st.sampled_from([1, 1, 2, 3]))
    world = tensor * pipeline * data * context
    nodes = draw(st.sampled_from(divisors(world)))
    return Topology(tensor, pipeline, nodes, world // nodes, context)


def coordinates(place: RankPlace, **steps: int) -> dict[str, int]:
    """Where a rank stands on each axis, moved by `steps`."""
    return {axis: getattr(place, axis) + steps.get(axis, 0) for axis in AXES}


@given(topologies())
def test_every_rank_has_one_place_and_every_place_one_rank(topology: Topology) -> None:
    places = topology.places()
    assert [place.rank for place in places] == list(range(topology.world_size))
    distinct = {(place.pipeline, place.data, place.context, place.tensor) for place in places}
    assert len(distinct) == topology.world_size == topology.model_size * topology.data
    for place in places:
        assert topology.rank(**coordinates(place)) == place.rank
        assert 0 <= place.tensor < topology.tensor
        assert 0 <= place.data < topology.data
        assert 0 <= place.pipeline < topology.pipeline
        assert place.node * topology.devices_per_node + place.local_rank == place.rank
        assert 0 <= place.local_rank < topology.devices_per_node


@given(topologies())
def test_tensor_groups_are_neighbours_and_pipeline_stages_are_far_apart(topology: Topology) -> None:
    for place in topology.places():
        if place.tensor + 1 < topology.tensor:
            assert topology.rank(**coordinates(place, tensor=1)) == place.rank + 1
        if place.context + 1 < topology.context:
            assert topology.rank(**coordinates(place, context=1)) == place.rank + topology.tensor
        if place.data + 1 < topology.data:
            assert topology.rank(**coordinates(place, data=1)) == place.rank + topology.tensor * topology.context
        if place.pipeline + 1 < topology.pipeline:
            step = topology.tensor * topology.context * topology.data
            assert topology.rank(**coordinates(place, pipeline=1)) == place.rank + step


@given(topologies())
def test_groups_across_nodes_are_counted_as_they_lie(topology: Topology) -> None:
    nodes: dict[tuple[int, int, int], set[int]] = {}
    for place in topology.places():
        nodes.setdefault((place.pipeline, place.data, place.context), set()).add(place.node)
    assert topology.tensor_groups_across_nodes() == sum(len(group) > 1 for group in nodes.values())


def test_megatrons_own_example() -> None:
    # megatron/core/parallel_state.py: 16 GPUs, tensor 2, pipeline 4 on two nodes of 8.
    topology = Topology(2, 4, 2, 8)
    tensor_groups = [
        [topology.rank(pipeline=p, data=d, context=0, tensor=t) for t in range(2)] for p in range(4) for d in range(2)
    ]
    data_groups = [
        [topology.rank(pipeline=p, data=d, context=0, tensor=t) for d in range(2)] for p in range(4) for t in range(2)
    ]
    pipeline_groups = [
        [topology.rank(pipeline=p, data=d, context=0, tensor=t) for p in range(4)] for d in range(2) for t in range(2)
    ]
    assert tensor_groups == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]
    assert data_groups == [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15]]
    assert pipeline_groups == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of megatron-core, as it is imported
@pytest.mark.parametrize("order", get_args(RankOrder))
def test_groups_are_those_of_megatron_core(order: RankOrder) -> None:
    from megatron.core.parallel_state import RankGenerator

    for tensor, context, data, pipeline in itertools.product((1, 2, 3), (1, 2), (1, 2, 4), (1, 2, 3)):
        topology = Topology(tensor, pipeline, 1, tensor * context * data * pipeline, context, order)
        generator = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=context, order=order)
        for name, axis in {"tp": "tensor", "cp": "context", "dp": "data", "pp": "pipeline"}.items():
            groups: dict[tuple[int, ...], list[int]] = {}
            for place in topology.places():
                others = tuple(getattr(place, other) for other in AXES if other != axis)
                groups.setdefault(others, []).append(place.rank)
            assert sorted(groups.values()) == sorted(generator.get_ranks(name)), (order, name, topology)


def test_ranks_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ValueError, match="6 ranks are not a multiple of 4"):
        Topology(4, 1, 2, 3)


@given(st.integers(1, 300_000), st.integers(1, 64))
def test_the_padded_vocabulary_divides_and_is_the_least(vocab_size: int, tensor: int) -> None:
    padded = padded_vocab_size(vocab_size, tensor)
    assert padded >= vocab_size
    assert padded % tensor == 0
    assert padded % 128 == 0
    assert not any(smaller % tensor == 0 and smaller % 128 == 0 for smaller in range(vocab_size, padded))


def test_the_padded_vocabulary_is_the_same_at_every_usual_split() -> None:
    assert {padded_vocab_size(50257, tensor) for tensor in (1, 2, 4, 8, 16, 32, 64, 128)} == {50304}


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_choices_pass_the_rule_they_are_offered_for(number: int, degree: int) -> None:
    assert all(number % choice == 0 for choice in closest(divisors(number), degree))
    assert all(choice % degree == 0 and abs(choice - number) <= degree for choice in multiples(degree, number))
    assert divisors(number) == [i for i in range(1, number + 1) if number % i == 0]


def test_choices_in_words() -> None:
    assert either([1]) == "1"
    assert either([1, 2]) == "1 or 2"
    assert either([1, 2, "null"]) == "1, 2 or null"
