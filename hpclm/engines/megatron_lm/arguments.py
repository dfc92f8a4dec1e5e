"""The flags of `megatron.arguments`: unknown ones, their values, and a layout of pipeline stages.

Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py (validate_args).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hpclm.core.nearest import nearest_name
from hpclm.core.spec import ModelSpec
from hpclm.engines.megatron_lm import stage_layout
from hpclm.formats.megatron import argument_values
from hpclm.planning.parallel_rules import LAYERS
from hpclm.planning.stage_context import StageContext

LAYOUT = "--pipeline-model-parallel-layout"


def flag_of(word: str) -> str:
    """`--seq_length=32` → `--seq-length`."""
    return word.partition("=")[0].replace("_", "-")


@dataclass(frozen=True)
class Arguments:
    """The flags that matter to a plan. `places`: of each flag among the words; `values`: what it is given there."""

    stage: StageContext
    places: dict[str, int] = field(default_factory=dict)
    values: dict[str, list[str]] = field(default_factory=dict)

    def error(self, flag: str, what: str, rule: str) -> None:
        self.stage.error(("megatron", "arguments", self.places[flag]), f"{flag} {what}", rule)

    def value(self, flag: str) -> str | None:
        """The first value that a flag is given."""
        return next(iter(self.values.get(flag, ())), None)


def read(stage: StageContext, words: Sequence[str]) -> Arguments:
    """The flags among the words; findings for flags that no release has, and for values that none takes."""
    found, known = Arguments(stage), argument_values.flags()
    for place, flag, values in argument_values.given(words):
        if flag not in known:
            near = nearest_name(flag_of(flag), known)
            hint = f"did you mean {near}?" if near else "is it of your own script?"
            stage.warning(
                ("megatron", "arguments", place),
                f"{flag} is no flag of Megatron-LM {argument_values.RELEASES}, which refuses such; {hint}",
                "known flags",
                words[place],
            )
            continue
        found.places[flag], found.values[flag] = place, values
        wrong = known[flag].wrong(values)
        if wrong is not None:
            found.error(flag, wrong, "values of flags")
    return found


def check_layout(found: Arguments, model: ModelSpec) -> None:
    """Megatron-LM's rules for a layout of pipeline stages."""
    layout, parallel = found.value(LAYOUT), found.stage.recipe.parallel
    if layout is None:
        return
    for key in (*LAYERS, "virtual_pipeline"):
        value = getattr(parallel, key)
        if value != type(parallel).model_fields[key].default:
            what = f"and parallel.{key} both divide the layers; keep one"
            found.error(LAYOUT, what, "one way to divide the layers")
    predicted = found.value("--mtp-num-layers") or "0"
    predictions = int(predicted) if predicted.isdecimal() else 0
    wrong = stage_layout.wrong(layout, parallel.pipeline, model.num_layers, predictions)
    if wrong is not None:
        found.error(LAYOUT, f"{layout} {wrong}", "Megatron-LM's layouts")
