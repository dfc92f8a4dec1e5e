"""What `megatron.arguments` say of the split beside the keys of `parallel`: a layout of pipeline stages.

Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py (validate_args).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hpclm.core.nearest import nearest_name
from hpclm.planning.parallel_rules import LAYERS
from hpclm.planning.stage_context import StageContext

LAYOUT = "--pipeline-model-parallel-layout"


@cache
def known_flags() -> frozenset[str]:
    """Those of Megatron-LM core_v0.12.0 to core_v0.19.0."""
    return frozenset(Path(__file__).with_name("known_flags.txt").read_text().split())


def flag_of(word: str) -> str:
    """`--seq_length=32` → `--seq-length`."""
    return word.partition("=")[0].replace("_", "-")


@dataclass(frozen=True)
class Arguments:
    """The flags that matter to a plan. `places`: of each flag among the words."""

    stage: StageContext
    places: dict[str, int] = field(default_factory=dict)

    def error(self, flag: str, what: str, rule: str) -> None:
        self.stage.error(("megatron", "arguments", self.places[flag]), f"{flag} {what}", rule)


def read(stage: StageContext, words: Sequence[str]) -> Arguments:
    """The flags among the words; findings for flags that no release has."""
    found = Arguments(stage)
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        flag = word.partition("=")[0]
        if flag not in known_flags():
            near = nearest_name(flag_of(word), known_flags())
            hint = f"did you mean {near}?" if near else "is it of your own script?"
            stage.warning(
                ("megatron", "arguments", place),
                f"{flag} is no flag of Megatron-LM core_v0.12 to core_v0.19, which refuses such; {hint}",
                "known flags",
                word,
            )
            continue
        found.places[flag] = place
    return found


def check(found: Arguments) -> None:
    """Megatron-LM's rules for what the arguments ask for."""
    parallel = found.stage.recipe.parallel
    for key in (*LAYERS, "virtual_pipeline") if LAYOUT in found.places else ():
        value = getattr(parallel, key)
        if value != type(parallel).model_fields[key].default:
            what = f"and parallel.{key} both divide the layers; keep one"
            found.error(LAYOUT, what, "one way to divide the layers")
