"""The engine `command`: any program as a stage."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from hpclm.core.records import taken
from hpclm.core.spec import ProgramSpec
from hpclm.engines.external import program_plan
from hpclm.planning import parallel_rules
from hpclm.planning.base_model import BaseModel
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.engines.command.section import Program
    from hpclm.recipe.schema.base import Section


class Command:
    """A user's program, run with hpclm's topology, rendezvous, recovery and collection."""

    name = "command"
    tasks = ("program",)
    packages: tuple[str, ...] = ()

    @cached_property
    def own_sections(self) -> dict[str, tuple[type[Section], str]]:
        from hpclm.engines.command.section import Program

        return {"program": (Program, "needed by engine command")}

    def plan(self, request: StageRequest) -> tuple[StagePlan, BaseModel]:
        from hpclm.engines.command.section import Program

        stage, recipe = request.stage, request.stage.recipe
        written = recipe.own_section("program", Program)
        if written is None:
            stage.error(("program",), "is missing; add it with argv, the program and its arguments", "needed section")
        for key in ("base", "prompts"):
            if getattr(recipe, key) is not None:
                stage.error((key,), "is only for hpclm's own tasks; list earlier stages in `after`", "program's keys")
        program = None
        if written is not None:
            _check_progress(stage, written)
            program = taken(ProgramSpec, written)
        parallel_rules.only_plain(stage, who="a program", allowed=("context",))
        return program_plan(request, parallel_rules.split_devices(stage), program), BaseModel()


def _check_progress(stage: StageContext, written: Program) -> None:
    """The pattern is valid and has a group for what status shows."""
    if written.progress is None:
        return
    try:
        groups = re.compile(written.progress).groupindex
    except re.error as error:
        stage.error(("program", "progress"), f"is not a valid regular expression: {error}", "progress is a pattern")
        return
    if not {"step", "loss"} & set(groups):
        stage.error(
            ("program", "progress"),
            "has no group; write (?P<step>…) or (?P<loss>…) around a number",
            "its groups",
        )


ENGINE = Command()
