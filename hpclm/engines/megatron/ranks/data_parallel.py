"""megatron-core's data parallelism around the chunks of layers that a rank has."""

from __future__ import annotations

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.engines.megatron.ranks.language_model import LanguageModel


def data_parallel(models: Sequence[LanguageModel], parallel: ParallelSpec) -> list[DistributedDataParallel]:
    """Each chunk with its buffers of gradients, and the hooks that megatron-core's schedules call (training.py, train,
    of Megatron-LM sets the same ones)."""
    wrapped = [
        DistributedDataParallel(
            config=model.config,
            ddp_config=DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=parallel.distributed_optimizer,
                overlap_grad_reduce=parallel.overlap,
                overlap_param_gather=parallel.overlap and parallel.distributed_optimizer,
            ),
            module=model,
            # only what the first chunk of a stage sends last is waited for, so the others need no buckets
            disable_bucketing=number > 0,
        )
        for number, model in enumerate(models)
    ]
    config = models[0].config
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = [one.no_sync for one in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync
    if parallel.overlap:
        starts = [one.start_grad_sync for one in wrapped]
        config.grad_sync_func = starts if len(starts) > 1 else starts[0]
    return wrapped
