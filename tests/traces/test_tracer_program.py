"""A tracer's process dies alone: what it was asked for is answered with what happened to it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.rank_trace import RankTrace
from hpclm.planning import make_plan, tracing
from hpclm.recipe import load
from hpclm.training.ranks.tracer_program import _in_forks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_one_that_is_killed_takes_no_other_with_it(at_once: int) -> None:
    def trace(one: dict[str, Any]) -> RankTrace:
        if one["rank"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return RankTrace(one["spec"]["stage"], one["rank"], peak_bytes=one["rank"] * 10)

    asked = [{"spec": {"stage": "pretrain"}, "rank": rank} for rank in range(5)]
    found = dict(_in_forks(trace, asked, at_once))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [found[place].peak_bytes for place in (0, 1, 3, 4)] == [0, 10, 30, 40]
    assert found[2].error == "the tracer ended with code -9 (a negative one is a signal's number)"
    assert (found[2].stage, found[2].rank) == ("pretrain", 2)


def test_a_tracer_that_does_not_begin_is_told_by_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: no torch here' >&2\nexit 1\n")
    broken.chmod(0o755)
    plan = make_plan(load(ROOT / "recipes" / "gpt345m_pretrain.yaml"))
    monkeypatch.setattr(sys, "executable", str(broken))
    found = tracing.trace(plan, None)
    assert [one.error for one in found] == ["ImportError: no torch here"]


def test_what_a_library_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = tmp_path / "python"
    noisy.write_text("#!/bin/sh\necho '[INFO] loaded'\necho '[0, {\"stage\"'\necho 'Killed' >&2\n")
    noisy.chmod(0o755)
    plan = make_plan(load(ROOT / "recipes" / "gpt345m_pretrain.yaml"))
    monkeypatch.setattr(sys, "executable", str(noisy))
    assert [one.error for one in tracing.trace(plan, None)] == ["Killed"]
