"""What a recipe means: topology, findings, stages. Standard library only.

    plan = make_plan(hpclm.recipe.load(path))
    plan.findings, plan.errors                    # everything the checks found
    plan.to_dict()                                # `hpclm plan --json`
    picture(plan)                                 # `hpclm plan`
    stage_specs(plan, run, run_dir)               # what the ranks read

The names below are looked up when first used, so that a rank loads nothing it does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpclm.planning.drawing import picture
    from hpclm.planning.plan import ContainerPlan, MountPlan, Origin, Plan, ResourcePlan, StagePlan
    from hpclm.planning.planner import make_plan
    from hpclm.planning.specs import stage_specs

__all__ = [
    "ContainerPlan",
    "MountPlan",
    "Origin",
    "Plan",
    "ResourcePlan",
    "StagePlan",
    "make_plan",
    "picture",
    "stage_specs",
]

_HOMES = {"make_plan": "planner", "picture": "drawing", "stage_specs": "specs"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hpclm.planning.{_HOMES.get(name, 'plan')}"), name)
