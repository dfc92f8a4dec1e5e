"""A login node without the engine says so before a job does."""

from __future__ import annotations

import importlib.util

import pytest

from hpclm.schedulers import discovery


def test_what_the_ranks_would_miss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert discovery.missing_engine() == []
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch", "megatron") else found(name)
    )
    (problem,) = discovery.missing_engine()
    assert "has no torch, megatron" in problem
    assert "hpclm[engine]" in problem
