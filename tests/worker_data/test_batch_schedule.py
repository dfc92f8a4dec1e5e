"""A global batch that grows, against megatron-core's own calculator and Megatron-LM's count of steps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

from hpclm.core.batch_schedule import BatchSchedule
from hpclm.core.spec import RampupSpec


@given(
    start=st.integers(1, 40),
    increment=st.integers(1, 20),
    times=st.integers(1, 12),
    samples=st.integers(1, 5000),
    more=st.integers(1, 3000),
)
@settings(max_examples=300, deadline=None)
def test_sizes_and_steps_are_megatrons(start: int, increment: int, times: int, samples: int, more: int) -> None:
    size = start + increment * times
    theirs = RampupBatchsizeNumMicroBatchesCalculator(size, 1, 1, False, 1, start, increment, samples)
    schedule = BatchSchedule(size, RampupSpec(start, increment, samples))
    consumed = step = 0
    # update_train_iters of megatron/training/training.py
    while consumed <= samples:
        theirs.update(consumed, consistency_check=False)
        assert (schedule.consumed(step), schedule.at(step)) == (consumed, theirs.get_current_global_batch_size())
        consumed += theirs.get_current_global_batch_size()
        step += 1
    total = consumed + more
    assert schedule.steps(total) == step + (total - consumed) // size
    for later in range(3):
        assert schedule.consumed(step + later) == consumed + later * size
        assert schedule.at(step + later) == size


def test_a_batch_that_does_not_grow() -> None:
    schedule = BatchSchedule(8)
    assert [schedule.consumed(step) for step in (0, 1, 1000)] == [0, 8, 8000]
    assert schedule.at(5) == 8
    assert schedule.steps(39) == 4
