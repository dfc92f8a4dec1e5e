"""What `megatron.arguments` say of the split: context and expert parallelism, interleaved and uneven pipeline stages.

Sources: Megatron-LM core_v0.14.0, megatron/training/arguments.py (validate_args),
megatron/core/transformer/transformer_config.py (__post_init__) and megatron/core/pipeline_parallel/schedules.py
(forward_backward_pipelining_with_interleaving).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from hpclm.core.nearest import nearest_name
from hpclm.core.spec import ModelSpec
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology

_FIRST, _LAST = "--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"
_BY_LAYERS, _BY_STAGES = "--num-layers-per-virtual-pipeline-stage", "--num-virtual-stages-per-pipeline-rank"
_LAYOUT = "--pipeline-model-parallel-layout"
_CONTEXT, _EXPERT = "--context-parallel-size", "--expert-model-parallel-size"
_EXPERT_TENSOR, _EXPERTS = "--expert-tensor-parallel-size", "--num-experts"
_COUNTS = (_FIRST, _LAST, _BY_LAYERS, _BY_STAGES, _CONTEXT, _EXPERT, _EXPERT_TENSOR, _EXPERTS)
_DIGITS = 10
# Each counts as one more layer.
_LIKE_LAYERS = ("--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split")


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

    @property
    def context(self) -> int:
        """Context parallel size."""
        return self.count(_CONTEXT) or 1

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


def check(found: Arguments, model: ModelSpec, topology: Topology | None, accumulation: int | None, length: int) -> None:
    """Megatron-LM's rules for what the arguments ask for.

    Args:
        accumulation: micro-batches of a rank in a step.
        length: tokens of a sample.
    """
    if found.context > 1 and length % (2 * found.context):
        what = f"{found.context}: {length} tokens of a sample are not a multiple of 2 × {found.context}"
        found.error(_CONTEXT, what, "sequence length % (2 · context) == 0")
    if _EXPERTS in found.places and model.add_bias_linear:
        found.error(_EXPERTS, "needs layers without biases; set model.add_bias_linear to false", "no bias with experts")
    if topology is not None:
        _experts(found, topology)
    _stages(found, model, accumulation)


def splits_layers(found: Arguments) -> bool:
    """Whether the layers are divided among the pipeline stages otherwise than evenly."""
    return any(flag in found.places for flag in (_FIRST, _LAST, _LAYOUT, *_LIKE_LAYERS))


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


def _stages(found: Arguments, model: ModelSpec, accumulation: int | None) -> None:
    given = [flag for flag in (_BY_LAYERS, _BY_STAGES, _LAYOUT) if flag in found.places]
    if len(given) > 1:
        found.error(given[1], f"and {given[0]} exclude each other; keep one", "one way to divide the layers")
    uneven = [flag for flag in (_FIRST, _LAST) if flag in found.places]
    if uneven and _BY_LAYERS in found.places:
        what = f"does not go with {uneven[0]}; give {_BY_STAGES}"
        found.error(_BY_LAYERS, what, "interleaved uneven stages")
        return
    if _LAYOUT in found.places:
        return
    pipeline = found.stage.recipe.parallel.pipeline
    layers = model.num_layers + sum(flag in found.places for flag in _LIKE_LAYERS)
    if uneven:
        extra = next((flag for flag in _LIKE_LAYERS if flag in found.places), None)
        if extra is not None:
            found.error(extra, f"does not go with {uneven[0]}; keep one", "one way to divide the layers")
            return
        layers -= sum(found.count(flag) or 0 for flag in uneven)
        if layers <= 0 or pipeline <= len(uneven) or layers % (pipeline - len(uneven)):
            what = f"leaves {layers} layers for {pipeline - len(uneven)} pipeline stages, which do not divide them"
            found.error(uneven[0], what, "layers of the other stages")
            return
        each = layers // (pipeline - len(uneven))
    elif layers % pipeline:
        flag = next((one for one in _LIKE_LAYERS if one in found.places), None)
        if flag is not None:
            found.error(flag, f"makes {layers} layers for pipeline {pipeline}", "layers % pipeline == 0")
        return
    else:
        each = layers // pipeline
    _interleaved(found, each, accumulation)


def _interleaved(found: Arguments, each: int, accumulation: int | None) -> None:
    """`each`: layers of a pipeline stage."""
    flag = next((one for one in (_BY_LAYERS, _BY_STAGES) if one in found.counts), None)
    if flag is None:
        return
    number, pipeline = found.counts[flag], found.stage.recipe.parallel.pipeline
    if each % number:
        found.error(flag, f"{number} does not divide the {each} layers of a pipeline stage", "virtual stages")
        return
    stages = number if flag == _BY_STAGES else each // number
    if stages == 1:
        return
    if pipeline == 1:
        found.error(flag, "needs pipeline 2 or more", "interleaved stages need a pipeline")
    elif accumulation is not None and accumulation % pipeline:
        what = f"needs a multiple of pipeline {pipeline} micro-batches in a step, and there are {accumulation}"
        found.error(flag, what, "micro-batches % pipeline == 0")
