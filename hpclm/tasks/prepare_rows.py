"""Tokenising and packing rows of instructions before a stage trains on them, where no GPU waits for it."""

from __future__ import annotations

from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import Task


def check(stage: StageContext) -> None:
    """One process is enough, and no GPU."""
    resources = stage.recipe.resources
    if resources.nodes * resources.devices_per_node > 1:
        what = "prepare-rows is one process; set nodes: 1 and devices_per_node: 1 for this stage"
        stage.error(("resources",), what, "one process")
    if resources.device == "gpu":
        what = "reserves GPUs, which tokenising does not use; set it to cpu for this stage"
        stage.warning(("resources", "device"), what, "no GPU is needed")


TASK = Task(
    name="prepare-rows",
    sections=frozenset({"model", "resources", "container", "recovery"}),
    check=check,
)
