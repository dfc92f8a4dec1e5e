"""Rows that an earlier stage (`prepare-rows`) has tokenised for one that trains."""

from __future__ import annotations

from dataclasses import fields, replace

from hpclm.core.fine_tune_spec import InstructionData
from hpclm.core.records import taken
from hpclm.engines.hf.section import Instructions
from hpclm.planning.base_model import find_stage
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.specs import rows_of

# Keys that do not change the rows that are trained on.
_FREE = ("test", "cache", "metrics")


def parents(request: StageRequest) -> tuple[str, ...]:
    """The stage that makes the rows, where one does."""
    written = request.stage.recipe.own_section("instructions", Instructions)
    if written is None or written.stage is None or not request.stage.task.trains:
        return ()
    return (written.stage,)


def resolve(request: StageRequest, data: InstructionData, folder: str | None) -> InstructionData:
    """The rows with the folder that the other stage keeps them in; a finding where it makes others.

    Args:
        folder: of the stage's model.
    """
    stage = request.stage
    for name in parents(request):
        parent = find_stage(stage, "instructions.stage", name, request.earlier, ("prepare-rows",), request.names)
        theirs = None if parent is None else parent.context.recipe.own_section("instructions", Instructions)
        if parent is None or theirs is None:
            return data
        made = taken(InstructionData, theirs)
        for one in fields(InstructionData):
            mine, other = getattr(data, one.name), getattr(made, one.name)
            if one.name not in _FREE and mine != other:
                what = f"is not what stage {name} prepares rows with ({other}); write it once, above the stages"
                stage.error(("instructions", one.name), what, "rows are as they were prepared", str(mine))
        if parent.base_model.folder is not None and parent.base_model.folder != folder:
            what = f"is not the model whose tokenizer stage {name} takes; write it once, above the stages"
            stage.error(("model", "checkpoint"), what, "rows are of the model's tokens")
        return replace(data, cache=made.cache or rows_of(name))
    return data
