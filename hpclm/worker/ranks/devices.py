"""The GPU of a rank, and how exactly it computes."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from hpclm.worker.addresses import boot_id
from hpclm.worker.rank_identity import RankFacts


def take_gpu(store: dist.Store, facts: RankFacts) -> torch.device:
    """This rank's GPU, which becomes the current one.

    A node's ranks see all its GPUs and take one each, or are given one each by the scheduler. Raises RuntimeError where
    there is none left, or where another rank has the same one: NCCL would hang or fail with less to say.
    """
    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f"torch sees {count} of node {facts.node}" + (f" (CUDA_VISIBLE_DEVICES={chosen})" if chosen else "")
    if count == 0:
        raise RuntimeError(f"no CUDA-capable device for rank {facts.rank}: {seen}")
    index = facts.local_rank if count > 1 else 0
    if index >= count:
        raise RuntimeError(
            f"rank {facts.rank} is number {index + 1} on its node, and {seen}; set resources.devices_per_node to the "
            "GPUs that a job gets on a node, or ask for more"
        )
    torch.cuda.set_device(index)
    if "MIG-" not in (chosen or ""):  # slices may all have the name of their GPU
        _alone_on(str(torch.cuda.get_device_properties(index).uuid), store, facts)
    return torch.device("cuda", index)


def _alone_on(uuid: str, store: dist.Store, facts: RankFacts) -> None:
    key = f"gpu/{boot_id()}/{uuid}"
    if store.add(key, 1) > 1:
        other = store.get(f"{key}/rank").decode()
        raise RuntimeError(
            f"ranks {other} and {facts.rank} on node {facts.node} have the same GPU ({uuid}): the job binds tasks to "
            "GPUs; remove --gpu-bind and --gpus-per-task from the site profile, or set gpus-per-task to 1"
        )
    store.set(f"{key}/rank", str(facts.rank))


def set_arithmetic(precision: str, *, deterministic: bool, trains: bool = True) -> None:
    """How GPUs multiply, said for every precision, since images change torch's defaults.

    Args:
        deterministic: only kernels that give the same bits each time; what has none raises.
        trains: otherwise it warns, for sampling needs a sum that has none.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # sums of bf16 and fp16 products are kept in fp32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # cuDNN plans an attention kernel for each new shape, which here are many: packed rows, every decoded token
    torch.backends.cuda.enable_cudnn_sdp(False)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=not trains)
