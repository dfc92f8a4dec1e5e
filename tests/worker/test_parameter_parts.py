"""A range of a tensor's elements, in storage order, as boxes."""

from __future__ import annotations

import math
import random

import torch

from hpclm.core.ranks.seeds import TILE, normal_part
from hpclm.engines.megatron.ranks.parameter_parts import boxes


def test_boxes_cover_a_range_once_and_in_order() -> None:
    draw = random.Random(3)
    for _ in range(2000):
        shape = tuple(draw.randrange(1, 6) for _ in range(draw.randrange(1, 5)))
        count = math.prod(shape)
        start = draw.randrange(count)
        stop = draw.randrange(start + 1, count + 1)
        numbers = torch.arange(count).view(shape)
        found, at = [], start
        for offset, size, first in boxes(shape, start, stop):
            assert first == at
            at += math.prod(size)
            place = tuple(slice(low, low + length) for low, length in zip(offset, size, strict=True))
            found.append(numbers[place].reshape(-1))
        assert torch.cat(found).tolist() == list(range(start, stop))
        assert len(found) <= 2 * len(shape) - 1


def test_a_part_of_drawn_weights_is_that_of_the_whole() -> None:
    whole = normal_part(1, "layer", (0, 0), (2 * TILE + 40, TILE + 7))
    for offset, shape in [((0, 0), (3, 3)), ((100, 60), (90, 75)), ((TILE, 0), (TILE, TILE + 7)), ((7, 130), (200, 5))]:
        part = normal_part(1, "layer", offset, shape)
        assert torch.equal(part, whole[offset[0] : offset[0] + shape[0], offset[1] : offset[1] + shape[1]])
    assert not torch.equal(normal_part(2, "layer", (0, 0), (9, 9)), whole[:9, :9])
    assert not torch.equal(normal_part(1, "other", (0, 0), (9, 9)), whole[:9, :9])
    assert abs(whole.mean().item()) < 0.02
    assert abs(whole.std().item() - 1.0) < 0.02
    # tiles do not repeat each other
    assert not torch.equal(whole[:TILE, :7], whole[TILE : 2 * TILE, :7])
