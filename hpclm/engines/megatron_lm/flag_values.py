"""Values of `megatron.arguments` that Megatron-LM refuses beside other flags, or for the model and split of the recipe.

Source: Megatron-LM core_v0.16.0: megatron/training/arguments.py (validate_args), and of megatron/core
transformer/transformer_config.py, optimizer/optimizer_config.py and models/gpt/gpt_layer_specs.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hpclm.core.spec import ModelSpec
from hpclm.engines.megatron_lm.arguments import Arguments

if TYPE_CHECKING:
    from hpclm.recipe.schema.resource_sections import Parallel

_MOMENTS = ("--exp-avg-dtype", "--exp-avg-sq-dtype", "--main-grads-dtype", "--main-params-dtype")
_BALANCED = ("aux_loss", "seq_aux_loss", "global_aux_loss", "none")
_PATTERN = re.compile(r"\[([01](?:,[01])*)\](?:\*(\d{1,4}))?")


class _Facts(NamedTuple):
    given: Arguments
    parallel: Parallel
    model: ModelSpec | None


def check(given: Arguments, model: ModelSpec | None) -> None:
    """Findings for each value that the ranks would end with."""
    facts = _Facts(given, given.stage.recipe.parallel, model)
    for flag, rule in _RULES.items():
        wrong = rule(facts) if flag in given.places else None
        if wrong is not None:
            given.error(flag, wrong, "Megatron-LM's flags")


def _precision_aware(facts: _Facts) -> str | None:
    return None if facts.parallel.distributed_optimizer else "needs parallel.distributed_optimizer"


def _moment(flag: str) -> Callable[[_Facts], str | None]:
    def wrong(facts: _Facts) -> str | None:
        value, aware = facts.given.value(flag), "--use-precision-aware-optimizer"
        return None if value in (None, "fp32") or aware in facts.given.places else f"{value} needs {aware}"

    return wrong


def _flexible(facts: _Facts) -> str | None:
    needed = "--moe-token-dispatcher-type"
    return None if facts.given.value(needed) == "flex" else f"needs {needed} flex"


def _capacity(facts: _Facts) -> str | None:
    balanced = facts.given.values.get("--moe-router-load-balancing-type", [])
    strange = next((one for one in balanced if one not in _BALANCED), None)
    if strange is None:
        return None
    return f"and --moe-router-load-balancing-type {strange} exclude each other; choose {', '.join(_BALANCED)}"


def _hierarchy(facts: _Facts) -> str | None:
    sizes = facts.given.values["--hierarchical-context-parallel-sizes"]
    product = math.prod(int(one) for one in sizes if one.isdecimal())
    if product == facts.parallel.context:
        return None
    return f"{' '.join(sizes)} makes {product}, and parallel.context is {facts.parallel.context}"


def _context_communication(facts: _Facts) -> str | None:
    needed = "--hierarchical-context-parallel-sizes"
    if "a2a+p2p" not in facts.given.values["--cp-comm-type"] or needed in facts.given.places:
        return None
    return f"a2a+p2p needs {needed}"


def _layers(facts: _Facts) -> str | None:
    """A pattern, as [0]*3+[1]*4, that is for another number of layers; one number is for any."""
    written = "".join((facts.given.value("--moe-layer-freq") or "").split()).strip("()")
    pieces = [_PATTERN.fullmatch(piece.strip("()")) for piece in written.split("+")]
    if facts.model is None or facts.model.num_moe_experts is None or None in pieces:
        return None
    count = sum(len(one[1].split(",")) * int(one[2] or 1) for one in pieces if one is not None)
    if count == facts.model.num_layers:
        return None
    return f"{written} is for {count} layers, and model.num_layers is {facts.model.num_layers}"


def _prediction(facts: _Facts) -> str | None:
    if facts.given.value("--mtp-num-layers") == "0" or facts.model is None or facts.model.position_embedding == "rope":
        return None
    return f"needs model.position_embedding rope, not {facts.model.position_embedding}"


def _formats(facts: _Facts) -> str | None:
    kind, flags = facts.given.value("--ckpt-format"), facts.given.places
    if kind == "fsdp_dtensor" and not {"--use-megatron-fsdp", "--use-custom-fsdp"} & set(flags):
        return "fsdp_dtensor needs --use-megatron-fsdp"
    if kind == "torch_dcp" and "--use-torch-fsdp2" not in flags:
        return "torch_dcp needs --use-torch-fsdp2"
    if kind == "torch_dcp" and max(facts.parallel.tensor, facts.parallel.pipeline) > 1:
        return "torch_dcp needs parallel.tensor 1 and parallel.pipeline 1"
    return None


_RULES: Mapping[str, Callable[[_Facts], str | None]] = {
    "--use-precision-aware-optimizer": _precision_aware,
    **{flag: _moment(flag) for flag in _MOMENTS},
    "--moe-enable-deepep": _flexible,
    "--moe-expert-capacity-factor": _capacity,
    "--hierarchical-context-parallel-sizes": _hierarchy,
    "--cp-comm-type": _context_communication,
    "--moe-layer-freq": _layers,
    "--mtp-num-layers": _prediction,
    "--ckpt-format": _formats,
}
