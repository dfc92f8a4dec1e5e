"""What `megatron.arguments` say of the split beside the keys of `parallel`: experts, and a layout of pipeline stages.

Source: Megatron-LM core_v0.14.0, megatron/training/arguments.py (validate_args).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hpclm.core.nearest import nearest_name
from hpclm.core.spec import ModelSpec
from hpclm.planning.parallel_rules import LAYERS
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology

LAYOUT = "--pipeline-model-parallel-layout"
_EXPERT = "--expert-model-parallel-size"
_EXPERT_TENSOR, _EXPERTS = "--expert-tensor-parallel-size", "--num-experts"
_COUNTS = (_EXPERT, _EXPERT_TENSOR, _EXPERTS)
_DIGITS = 10


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
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, flag: str) -> int | None:
        return self.counts.get(flag)

    def error(self, flag: str, what: str, rule: str) -> None:
        self.stage.error(("megatron", "arguments", self.places[flag]), f"{flag} {what}", rule)


def read(stage: StageContext, words: Sequence[str]) -> Arguments:
    """The flags among the words; findings for values that are no numbers, and for flags that no release has."""
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
        if flag in _COUNTS:
            value = word.partition("=")[2] if "=" in word else "".join(words[place + 1 : place + 2])
            if value.isascii() and value.isdecimal() and len(value) < _DIGITS and int(value) > 0:
                found.counts[flag] = int(value)
            else:
                found.error(flag, "needs a whole number from 1", "a number")
    return found


def check(found: Arguments, model: ModelSpec, topology: Topology | None) -> None:
    """Megatron-LM's rules for what the arguments ask for."""
    if _EXPERTS in found.places and model.add_bias_linear:
        found.error(_EXPERTS, "needs layers without biases; set model.add_bias_linear to false", "no bias with experts")
    if topology is not None:
        _experts(found, topology)
    parallel = found.stage.recipe.parallel
    for key in (*LAYERS, "virtual_pipeline") if LAYOUT in found.places else ():
        value = getattr(parallel, key)
        if value != type(parallel).model_fields[key].default:
            what = f"and parallel.{key} both divide the layers; keep one"
            found.error(LAYOUT, what, "one way to divide the layers")


def _experts(found: Arguments, topology: Topology) -> None:
    expert, experts = found.count(_EXPERT), found.count(_EXPERTS)
    if expert is None or expert == 1:
        return
    if experts is None:
        found.error(_EXPERT, f"{expert} needs --num-experts", "experts")
    elif experts % expert:
        found.error(_EXPERT, f"{expert} does not divide --num-experts {experts}", "num_experts % expert == 0")
    size = expert * (found.count(_EXPERT_TENSOR) or topology.tensor) * topology.pipeline
    if topology.world_size % size:
        what = f"{expert}: {topology.world_size} ranks are not a multiple of expert × expert tensor × pipeline = {size}"
        found.error(_EXPERT, what, "ranks % (expert · expert tensor · pipeline) == 0")
