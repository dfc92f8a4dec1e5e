"""FSDP2 and DeepSpeed where there are no other ranks and tensors have no bytes: for `hf_trace`."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from types import FrameType
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from hpclm.engines.hf.ranks import fsdp
from hpclm.engines.hf.ranks.torch_sharding import TorchSharding
from hpclm.engines.hf.ranks.zero import ZeroSharding

GATHERED = "gathered weights"
# Files of torch and DeepSpeed, and what they make in the passes.
_MAKERS = {
    "_fully_shard/_fsdp_param.py": GATHERED,
    "_fully_shard/_fsdp_collectives.py": "communication",
    "deepspeed/runtime/zero/partition_parameters.py": GATHERED,
    "deepspeed/runtime/zero/stage3.py": "gradients",
    "deepspeed/runtime/zero/stage_1_and_2.py": "gradients",
    "torch/distributed/distributed_c10d.py": "communication",
}


def kind_by_maker(frame: FrameType) -> str | None:
    """Of a tensor that this line of code makes."""
    name = frame.f_code.co_filename
    if frame.f_code.co_name == "allocate":
        return None  # its caller tells
    found = next((kind for ending, kind in _MAKERS.items() if name.endswith(ending)), None)
    # of what FSDP2 makes to divide gradients the second is this rank's part, which stays
    if found == "communication" and "reduce_scatter_input" in frame.f_locals:
        return "gradients"
    return found


def optimizer_tensors(sharding: Any) -> list[Tensor]:
    """What DeepSpeed has made for the optimizer before its first update: fp32 copies of what is trained."""
    if not isinstance(sharding, ZeroSharding):
        return []
    zero = sharding.engine.optimizer
    flat = zero.fp32_partitioned_groups_flat if sharding.stage == 3 else zero.single_partition_of_fp32_groups
    return [one for one in flat if one is not None]


@contextlib.contextmanager
def without_ranks() -> Iterator[None]:
    """Ranks agree without being asked."""
    made = fsdp.mesh

    def real_mesh(*given: Any) -> DeviceMesh:
        with _disable_current_modes():
            return made(*given)

    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(fsdp, "mesh", real_mesh))
        # its buckets are where the gradients lie, and it is not of tensors without bytes
        patches.enter_context(patch.object(TorchSharding, "_distributed", lambda self: None))
        if importlib.util.find_spec("deepspeed") is not None:
            from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator

            for module in (partition_parameters, partitioned_param_coordinator):
                patches.enter_context(patch.object(module, "assert_ints_same_as_other_ranks", lambda ints: None))
        yield
