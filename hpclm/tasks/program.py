"""Running an external program."""

from __future__ import annotations

from hpclm.planning.task import Task

TASK = Task(
    name="program",
    sections=frozenset({"parallel", "resources", "container", "recovery", "tracking"}),
)
