"""Flags of `megatron.arguments` that need or exclude another, which Megatron-LM's validate_args would refuse later.

Source: Megatron-LM core_v0.14.0 to core_v0.16.0, megatron/training/arguments.py. What is a key is in `support`,
what depends on a flag's value in `flag_values`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpclm.engines.megatron_lm.arguments import Arguments
from hpclm.engines.megatron_lm.flags import FSDP
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology

# Of each flag groups of which one is needed.
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "--use-torch-fsdp2": (("--no-gradient-accumulation-fusion",),),
    "--start-weight-decay": (("--weight-decay-incr-style",),),
    "--end-weight-decay": (("--weight-decay-incr-style",),),
    "--fp8-param-gather": (("--fp8-format",),),
    "--fp4-param-gather": (("--fp4-format",),),
    "--fsdp-manual-registration": (("--use-megatron-fsdp",), ("--nccl-ub", "--use-nccl-ub")),
    "--hybrid-context-parallel": (("--calculate-per-token-loss",),),
    "--load-main-params-from-ckpt": (("--no-load-optim",),),
    "--optimizer-cpu-offload": (("--use-precision-aware-optimizer",),),
    "--replication": (("--replication-jump",),),
}
# The second is refused beside the first.
_EXCLUDE = (("--fp8-format", "--fp4-format"),)
# Refused whatever else is given, and what to do.
_NEVER = {
    "--no-position-embedding": "is out of date; set model.position_embedding",
    "--encoder-num-layers": "is for other models; set model.num_layers",
    "--decoder-num-layers": "is for other models; set model.num_layers",
    "--encoder-seq-length": "is for other models; the length is the data's",
    "--decoder-seq-length": "is for other models; the length is the data's",
    "--batch-size": "is no longer Megatron-LM's; set batch.micro",
    "--warmup": "is no longer Megatron-LM's; set optim.schedule.warmup_ratio",
    "--model-parallel-size": "is no longer Megatron-LM's; set parallel.tensor",
    "--checkpoint-activations": "is no longer Megatron-LM's; set trainer.recompute",
    "--encoder-tensor-model-parallel-size": "is for other models, and changes the number of ranks; leave it out",
    "--encoder-pipeline-model-parallel-size": "is for other models, and changes the number of ranks; leave it out",
    "--step-batch-size-schedule": "changes the batch; set batch.global and batch.rampup",
    "--use-checkpoint-args": "takes the model from elsewhere; set it in the recipe",
    "--use-mp-args-from-checkpoint-args": "takes the split from elsewhere; set parallel",
    "--yaml-cfg": "takes model and split from elsewhere; set them in the recipe",
}
_INSTANCES = "--num-distributed-optimizer-instances"


def check(stage: StageContext, given: Arguments, words: Sequence[str], topology: Topology | None) -> None:
    """Findings for flags that Megatron-LM refuses beside each other, or beside the recipe's keys."""
    _beside_flags(given)
    _beside_keys(stage, given)
    _instances(given, topology)
    if words and not words[0].startswith("-"):
        where = ("megatron", "arguments", 0)
        stage.error(where, f"{words[0]} belongs to no flag; write --flag value", "arguments are flags", words[0])


def _beside_flags(given: Arguments) -> None:
    flags = given.places
    for flag in set(_NEVER) & set(flags):
        given.error(flag, _NEVER[flag], "Megatron-LM's flags")
    for flag, groups in _NEEDS.items():
        for group in groups if flag in flags else ():
            if not any(one in flags for one in group):
                given.error(flag, f"needs {' or '.join(group)}", "Megatron-LM's flags")
    for one, other in _EXCLUDE:
        if one in flags and other in flags:
            given.error(other, f"and {one} exclude each other; keep one", "Megatron-LM's flags")
    if given.value("--weight-decay-incr-style") not in (None, "constant"):
        for needed in ("--start-weight-decay", "--end-weight-decay"):
            if needed not in flags:
                given.error("--weight-decay-incr-style", f"needs {needed}", "Megatron-LM's flags")


def _beside_keys(stage: StageContext, given: Arguments) -> None:
    flags, recipe = given.places, stage.recipe
    parallel = recipe.parallel
    if "--use-torch-fsdp2" in flags:
        _torch_fsdp2(stage, given)
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 2 and "--no-overlap-p2p-communication" in flags:
        what = "needs parallel.pipeline above 2 where parallel.virtual_pipeline is set"
        given.error("--no-overlap-p2p-communication", what, "Megatron-LM's flags")
    if "--overlap-param-gather-with-optimizer-step" in flags and not (
        parallel.distributed_optimizer and parallel.overlap
    ):
        what = "needs parallel.distributed_optimizer and parallel.overlap"
        given.error("--overlap-param-gather-with-optimizer-step", what, "Megatron-LM's flags")
    if "--fp8-param-gather" in flags and not parallel.distributed_optimizer and not set(FSDP) & set(flags):
        what = f"needs parallel.distributed_optimizer or {' or '.join(FSDP)}"
        given.error("--fp8-param-gather", what, "Megatron-LM's flags")
    if recipe.trainer is not None and recipe.trainer.deterministic:
        for flag in ("--use-flash-attn", "--cross-entropy-loss-fusion"):
            if flag in flags:
                given.error(flag, "does not go with trainer.deterministic", "Megatron-LM's flags")


def _instances(given: Arguments, topology: Topology | None) -> None:
    """Groups of ranks among which each the optimizer's state is divided (parallel_state.initialize_model_parallel)."""
    count = given.value(_INSTANCES)
    if topology is None or count is None or not count.isdecimal():
        return
    parallel = given.stage.recipe.parallel
    tensor = parallel.tensor if parallel.expert_tensor is None else parallel.expert_tensor
    of_experts = topology.world_size // (parallel.pipeline * tensor * parallel.expert)
    for ranks, whose in ((topology.data * topology.context, "data and context parallel"), (of_experts, "of experts")):
        if int(count) < 1 or ranks % int(count):
            what = f"{count} does not divide the {ranks} ranks that share weights ({whose})"
            given.error(_INSTANCES, what, "optimizer instances")
            return


def _torch_fsdp2(stage: StageContext, given: Arguments) -> None:
    recipe = stage.recipe
    wrong = {
        "does not go with parallel.pipeline above 1": recipe.parallel.pipeline > 1,
        "does not go with parallel.expert above 1": recipe.parallel.expert > 1,
        "does not go with fp16": recipe.trainer is not None and recipe.trainer.precision == "fp16",
        "needs model.tie_embeddings false": recipe.model is not None and recipe.model.tie_embeddings,
        "and parallel.distributed_optimizer exclude each other; keep one": recipe.parallel.distributed_optimizer,
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            given.error("--use-torch-fsdp2", what, "Megatron-LM's flags")
