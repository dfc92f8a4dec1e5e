"""A login node without the engine says so before a job does."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys

import pytest

from hpclm.containers import LaunchSpec
from hpclm.planning.engine_protocol import engine_named
from hpclm.schedulers.capabilities import missing_packages
from tests.launch.test_slurm_script import JOB


def test_what_the_ranks_would_miss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dataclasses.replace(
        JOB, python=(sys.executable,), launch=LaunchSpec(), packages=engine_named("megatron").packages
    )
    assert missing_packages([own]) == []
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("torch", "megatron") else found(name)
    )
    (problem,) = missing_packages([own])
    assert "has no torch, megatron" in problem
    assert "hpclm[engine]" in problem
    assert missing_packages([dataclasses.replace(own, in_container=True)]) == []
