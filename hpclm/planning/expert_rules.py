"""Rules for mixture of experts, each a finding with value, rule and the nearest valid values.

Sources: megatron-core core_r0.16.0, parallel_state.py (initialize_model_parallel), transformer/transformer_config.py
(__post_init__), transformer/moe/moe_layer.py (BaseMoELayer, MoELayer.forward); Megatron-LM
megatron/training/arguments.py (validate_args).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclm.core.nearest import closest, divisors, either
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import ModelSpec
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.schema.resource_sections import Parallel

_MODEL_KEYS = ("moe_router_topk", "moe_aux_loss_coeff", "moe_z_loss_coeff")


def check(stage: StageContext, model: ModelSpec) -> None:
    """Experts of the model, how they are divided, and what training them needs."""
    _order(stage)
    if model.num_moe_experts is None:
        _without_experts(stage)
        return
    _router(stage, model)
    _division(stage, model)
    _tensor_ranks(stage, model)


def _without_experts(stage: StageContext) -> None:
    written, parallel = stage.recipe.model, stage.recipe.parallel
    for key in _MODEL_KEYS:
        if written is not None and getattr(written, key) is not None:
            what = "is for a mixture of experts, and the model has none; leave it out, or set num_moe_experts"
            stage.error(("model", key), what, "keys of experts", getattr(written, key))
    if parallel.expert > 1:
        what = f"{parallel.expert} devices cannot share the experts of a model that has none; leave it out, or set "
        stage.error(("parallel", "expert"), f"{what}model.num_moe_experts", "keys of experts", parallel.expert, (1,))
    if parallel.expert_tensor is not None:
        what = "is for a mixture of experts, and the model has none; leave it out, or set model.num_moe_experts"
        stage.error(("parallel", "expert_tensor"), what, "keys of experts", parallel.expert_tensor, (None,))


def _router(stage: StageContext, model: ModelSpec) -> None:
    experts, chosen = model.num_moe_experts or 0, model.moe_router_topk
    if chosen > experts:
        stage.error(
            ("model", "moe_router_topk"),
            f"{chosen} experts cannot be chosen of num_moe_experts {experts}; choose {experts} or less",
            "moe_router_topk <= num_moe_experts",
            chosen,
            (experts,),
        )


def _division(stage: StageContext, model: ModelSpec) -> None:
    """Experts by `expert`; devices by the ranks that have all experts between them; each expert by `expert_tensor`."""
    parallel, resources = stage.recipe.parallel, stage.recipe.resources
    experts, world = model.num_moe_experts or 0, resources.nodes * resources.devices_per_node
    each = _devices_of_one(parallel)
    if experts % parallel.expert:
        choices = closest(divisors(experts), parallel.expert)
        stage.error(
            ("parallel", "expert"),
            f"{parallel.expert} does not divide num_moe_experts {experts}; choose {either(choices)}",
            "num_moe_experts % expert == 0",
            parallel.expert,
            choices,
        )
    elif world % (parallel.expert * each * parallel.pipeline):
        fitting = [one for one in divisors(experts) if not world % (one * each * parallel.pipeline)]
        choices = closest(fitting, parallel.expert)
        hint = f"choose expert {either(choices)}" if choices else "choose another expert_tensor"
        stage.error(
            ("parallel", "expert"),
            f"{world} devices are not a multiple of expert {parallel.expert} × expert_tensor {each} × pipeline "
            f"{parallel.pipeline} = {parallel.expert * each * parallel.pipeline}; {hint}",
            "devices % (expert · expert_tensor · pipeline) == 0",
            parallel.expert,
            choices,
        )
    elif parallel.expert > 1 and resources.nodes > 1 and resources.devices_per_node % (parallel.expert * each):
        choices = closest([one for one in divisors(experts) if not resources.devices_per_node % (one * each)], 1)
        stage.warning(
            ("parallel", "expert"),
            f"each of the {parallel.expert * each} devices that have all experts between them sends tokens to the "
            f"others, and they reach over nodes (of {resources.devices_per_node} devices), which is slow"
            + (f"; choose {either(choices)}" if choices else ""),
            "expert group within one node",
            parallel.expert,
            choices,
        )
    if model.ffn_hidden_size % each:
        key = "tensor" if parallel.expert_tensor is None else "expert_tensor"
        choices = closest([one for one in divisors(model.ffn_hidden_size) if one <= max(8, 4 * each)], each)
        stage.error(
            ("parallel", key),
            f"{each} does not divide ffn_hidden_size {model.ffn_hidden_size}; choose {either(choices)}",
            f"ffn_hidden_size % {key} == 0",
            each,
            choices,
        )


def _order(stage: StageContext) -> None:
    """parallel_state.py, initialize_model_parallel: experts keep the other weights' pipeline stages, those of a dense
    model as well, which would be shared by `tensor` devices."""
    parallel = stage.recipe.parallel
    shared, others = parallel.expert * _devices_of_one(parallel), parallel.tensor * parallel.context
    if parallel.order == ParallelSpec.order or parallel.pipeline == 1 or shared == others:
        return
    needed = f"context 1, which is {parallel.context}"
    if parallel.expert > 1 or parallel.expert_tensor is not None:
        needed = f"expert × expert_tensor {shared} to be tensor × context {others}"
    stage.error(
        ("parallel", "order"),
        f"{parallel.order} with pipeline {parallel.pipeline} needs {needed}, in megatron-core; "
        f"choose {ParallelSpec.order}",
        "expert · expert_tensor == tensor · context in this order",
        parallel.order,
        (ParallelSpec.order,),
    )


def _devices_of_one(parallel: Parallel) -> int:
    """That share each expert."""
    return parallel.tensor if parallel.expert_tensor is None else parallel.expert_tensor


def _tensor_ranks(stage: StageContext, model: ModelSpec) -> None:
    """What megatron-core asks for where tensor ranks share tokens or experts."""
    parallel = stage.recipe.parallel
    each = _devices_of_one(parallel)
    if stage.task.trains and parallel.tensor > 1 and not parallel.sequence:
        stage.error(
            ("parallel", "sequence"),
            f"false, and with tensor {parallel.tensor} each tensor rank would send the same tokens to the experts; "
            "choose true",
            "experts with tensor > 1 need sequence",
            False,
            (True,),
        )
    if model.add_bias_linear and each > 1:
        what = f"experts with biases cannot be shared by {each} devices; choose expert_tensor 1, or model."
        what += "add_bias_linear false"
        stage.error(("parallel", "expert_tensor"), what, "experts with biases need expert_tensor 1", each, (1,))
    if parallel.expert == 1 and each != parallel.tensor:
        # megatron-core sums gradients of experts over other ranks than those of the rest only where `expert` > 1
        choices = (parallel.tensor,)
        what = (
            f"{each} is not tensor {parallel.tensor}, and with parallel.expert 1 gradients of experts would be summed "
        )
        what += "over the wrong devices; leave it out, or set expert 2 or more"
        stage.error(
            ("parallel", "expert_tensor"), what, "expert_tensor != tensor needs expert > 1", parallel.expert_tensor,
            choices,
        )  # fmt: skip
