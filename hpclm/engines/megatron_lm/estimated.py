"""Memory of a rank of Megatron-LM's pretrain_gpt.py: by the formula of engine megatron, which is Megatron-LM's own."""

from __future__ import annotations

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import BatchSpec, CheckpointSpec, IndexedData, ModelSpec, StageSpec, TextData, TokenizerSpec
from hpclm.engines.megatron_lm.arguments import LAYOUT, Arguments
from hpclm.engines.megatron_lm.flags import FSDP, sample_length
from hpclm.planning import lowering, rules
from hpclm.planning.megatron_memory import memory
from hpclm.planning.memory_estimate import MemoryEstimate
from hpclm.planning.stage_context import StageContext

# What the beginnings of these flags say changes what a rank holds, and the formula does not know it.
_OTHERWISE = (
    *FSDP, LAYOUT, "--attention-backend", "--cpu-offloading", "--cuda-graph", "--exp-avg", "--fine-grained-activation",
    "--fp4", "--fp8", "--grad-reduce-in-bf16", "--heterogeneous", "--hybrid", "--main-grads", "--main-params", "--moe-",
    "--enable-cuda-graph", "--external-cuda-graph", "--distribute-saved", "--num-distributed-optimizer-instances",
    "--use-precision-aware-optimizer", "--mtp-num-layers", "--multi-latent-attention",
    "--optimizer", "--overlap-moe", "--transformer-impl", "--spec",
)  # fmt: skip


def estimate(
    stage: StageContext,
    given: Arguments,
    parallel: ParallelSpec,
    model: ModelSpec,
    indexed: IndexedData | None,
    accumulation: int | None,
) -> MemoryEstimate | None:
    """Of the most loaded rank, with a finding where no GPU can hold it; None where arguments change what it holds."""
    sizes = stage.recipe.batch
    if sizes is None or accumulation is None or any(flag.startswith(_OTHERWISE) for flag in given.places):
        return None
    spec = StageSpec(
        run="",
        stage=stage.recipe.name,
        stage_dir="",
        task="pretrain",
        device=lowering.device(stage),
        model=model,
        tokenizer=TokenizerSpec("base"),
        parallel=parallel,
        batch=BatchSpec(sizes.global_size, sizes.micro_size, accumulation),
        trainer=lowering.trainer(stage),
        optim=lowering.optim(stage),
        checkpoint=CheckpointSpec(),
        text=TextData([], seq_length=sample_length(model, indexed)),
    )
    found = memory(spec)
    if found is not None:
        rules.device_memory(stage, found.total)
    return found
