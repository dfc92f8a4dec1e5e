"""A DeepSpeed configuration: the user's, with its `auto` values filled in from the recipe; refused where it says
something else than the recipe.

Keys: DeepSpeed's docs/_pages/config-json.md. `auto` is what Hugging Face's configurations leave to the Trainer
(transformers/integrations/deepspeed.py).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpclm.core.files import open_file
from hpclm.core.fine_tune_spec import ShardingSpec
from hpclm.core.nearest import nearest_name
from hpclm.core.spec import BatchSpec
from hpclm.data.rows import kind_of, word
from hpclm.engines.hf import deepspeed_keys

AUTO = "auto"
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
_KEYS = (
    *deepspeed_keys.OURS, *deepspeed_keys.REMOVED, "train_batch_size",
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16", "fp16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown", "communication_data_type",
    "seq_parallel_communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "data_types", "disable_allgather", "aio", "comms_logger", "flops_profiler", "compile", "dataloader_drop_last",
    "disable_python_gc", "gradient_allreduce_op", "check_grad_overflow",
    "hybrid_engine", "pipeline", "monitor_config", "timers", "zero_hpz_partition_size",
    "use_data_before_expert_parallelism",
)  # fmt: skip
# DeepSpeed's runtime/zero/config.py (0.19): what zero_optimization may hold, which refuses everything else.
FLAGS = frozenset(
    ("contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce", "allgather_partitions",
     "overlap_comm", "compute_grad_norm", "load_from_fp32_weights", "elastic_checkpoint", "cpu_offload_param",
     "cpu_offload_use_pin_memory", "cpu_offload", "stage3_gather_16bit_weights_on_model_save",
     "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential",
     "stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "legacy_stage1", "round_robin_gradients",
     "parameter_alignment", "zero_quantized_weights", "zero_quantized_nontrainable_weights",
     "zero_quantized_gradients", "memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply",
     "log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory")
)  # fmt: skip
NUMBERS = frozenset(
    ("reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size",
     "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
     "stage3_max_reuse_distance", "stage3_module_granularity_threshold", "zero_hpz_partition_size")
)  # fmt: skip
OBJECTS = frozenset(("offload_param", "offload_optimizer", "zenflow", "leaf_module"))
OFFLOAD = frozenset(
    ("device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory", "pipeline_read",
     "pipeline_write", "fast_init", "ratio", "super_offload", "cpuadam_cores_perc")
)  # fmt: skip
_OFFLOADS = ("offload_optimizer", "offload_param")
_MAX_BYTES, _MAX_DEPTH, _SHOWN = 1 << 20, 16, 60


class ContradictionError(ValueError):
    """A key that says something else than the recipe. `key`: its place, as in zero_optimization.stage."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key if key.isprintable() else repr(key)


def read_configuration(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration as its user wrote it. Raises ValueError."""
    try:
        with open_file(path) as stream:
            text = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); give a DeepSpeed configuration") from None
    if len(text) > _MAX_BYTES:
        raise ValueError("is too large for a configuration; give a DeepSpeed configuration")
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply for a configuration; give a DeepSpeed configuration") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({str(error).splitlines()[0][:200]}); correct it") from None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object; give a DeepSpeed configuration")
    level: list[Any] = [found]
    for _ in range(_MAX_DEPTH):
        level = [one for each in level if isinstance(each, (dict, list))
                 for one in (each.values() if isinstance(each, dict) else each)]  # fmt: skip
    if level:
        raise ValueError("is nested too deeply for a configuration; give a DeepSpeed configuration")
    return found


def wanted(sharding: ShardingSpec, batch: BatchSpec, world_size: int, precision: str, *, clip: float) -> dict[str, Any]:
    """What the recipe says, as DeepSpeed has it."""
    zero: dict[str, Any] = {"stage": STAGES[sharding.strategy]}
    where = {"device": "cpu", "pin_memory": False}
    if sharding.nvme is not None:
        where = {"device": "nvme", "nvme_path": sharding.nvme, "pin_memory": False}
    if sharding.offload != "none":
        zero["offload_optimizer"] = dict(where)
    if sharding.offload == "all":
        zero["offload_param"] = dict(where)
    return {
        "train_batch_size": batch.global_batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": batch.global_batch_size // (batch.micro_batch_size * world_size),
        "gradient_clipping": clip,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "zero_optimization": zero,
    }


def completed(
    user: dict[str, Any], sharding: ShardingSpec, batch: BatchSpec, world_size: int, precision: str, *, clip: float,
    hidden_size: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The whole configuration. Raises ContradictionError."""
    for key, instead in deepspeed_keys.OURS.items():
        if not _is_off(user.get(key)):
            raise ContradictionError(key, f"is hpclm's part; use {instead}, and leave {key} out")
    _check_names(user, _KEYS, "")
    _check_zero(user.get("zero_optimization"), sharding)
    _check_refused(user, sharding)
    left_out = (*deepspeed_keys.OURS, *deepspeed_keys.REMOVED)
    user = {key: value for key, value in user.items() if key not in left_out}
    made = _merged(user, wanted(sharding, batch, world_size, precision, clip=clip), "")
    zero = made["zero_optimization"]
    _fill_sizes(zero, hidden_size)
    made.setdefault("steps_per_print", 10**9)
    made.setdefault("wall_clock_breakdown", False)
    # optimizers other than DeepSpeed's, whose own need compiled code
    made["zero_allow_untested_optimizer"] = True
    made["zero_force_ds_cpu_optimizer"] = False
    left = _autos(made, "")
    if left:
        raise ContradictionError(left[0], "is auto, and nothing in the recipe says what it should be; write a value")
    return made


def _check_names(user: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    """Refuses a misspelt key. Others that are not known may be a later DeepSpeed's."""
    names = tuple(known)
    for key in user:
        near = None if key in names else nearest_name(key, names)
        if near is not None:
            raise ContradictionError(f"{place}{word(key)}", f"is no key of DeepSpeed's; did you mean {near}?")


def _check_zero(zero: object, sharding: ShardingSpec) -> None:
    if not isinstance(zero, dict):
        return
    place = "zero_optimization."
    _check_names(zero, ("stage", *FLAGS, *NUMBERS, *OBJECTS, *deepspeed_keys.REMOVED_OF_ZERO), place)
    for key, value in zero.items():
        if key in ("cpu_offload", "cpu_offload_param") and value not in (None, False):
            raise ContradictionError(f"{place}{key}", "is out of date; use sharding.offload, and leave it out")
        if value in (None, AUTO):
            continue
        if key in FLAGS and not isinstance(value, bool):
            raise ContradictionError(f"{place}{key}", f"is {_short(value)}; write true or false")
        if key in NUMBERS and not _is_count(value):
            raise ContradictionError(f"{place}{key}", f"is {_short(value)}; write a whole number from 0")
        if key in OBJECTS and not isinstance(value, dict):
            raise ContradictionError(f"{place}{key}", f"is {kind_of(value)}; write an object")
    offloaded = {"none": (), "optimizer": _OFFLOADS[:1], "all": _OFFLOADS}[sharding.offload]
    for key in _OFFLOADS:
        inner = zero.get(key)
        if not isinstance(inner, dict):
            continue
        _check_names(inner, OFFLOAD, f"{place}{key}.")
        if key not in offloaded and inner.get("device") not in (None, "none"):
            wanted_offload = "optimizer" if key == _OFFLOADS[0] else "all"
            what = f"offloads, and the recipe's sharding.offload is {sharding.offload}; choose {wanted_offload} there"
            raise ContradictionError(f"{place}{key}", f"{what}, or leave it out")


def _is_off(value: object) -> bool:
    return value in (None, False, AUTO, {}) or (isinstance(value, dict) and value.get("enabled") is False)


def _check_refused(user: Mapping[str, Any], sharding: ShardingSpec) -> None:
    """What DeepSpeed's checks or its code would refuse on the ranks."""
    zero = user.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    removed = [key for key in deepspeed_keys.REMOVED if not _is_off(user.get(key))]
    removed += [f"zero_optimization.{key}" for key in deepspeed_keys.REMOVED_OF_ZERO if key in zero]
    if removed:
        raise ContradictionError(removed[0], "was removed from DeepSpeed (0.19); leave it out")
    new, old = "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"
    if new in zero and old in zero:
        raise ContradictionError(f"zero_optimization.{old}", f"is the old name of {new}; leave it out")
    if sharding.strategy != "zero1" and zero.get("reduce_scatter") is not False:
        divides = user.get("gradient_predivide_factor") not in (None, AUTO, 1, 1.0)
        for key, refused in (
            ("gradient_predivide_factor", divides),
            ("prescale_gradients", user.get("prescale_gradients") is True),
        ):
            if refused:
                raise ContradictionError(key, "is refused by ZeRO 2 and 3 with reduce_scatter; leave it out")
    if sharding.strategy == "zero3" and zero.get("zero_hpz_partition_size") not in (None, AUTO, 0, 1):
        what = "gives each node a second copy of the weights (ZeRO++), which cannot be built layer by layer here; "
        raise ContradictionError(
            "zero_optimization.zero_hpz_partition_size", f"{what}leave it out, or use fsdp with group_size"
        )


def _is_count(value: object) -> bool:
    """JSON writes large ones as 5e8."""
    if isinstance(value, float):
        return math.isfinite(value) and value >= 0 and value == int(value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _merged(user: dict[str, Any], recipe: dict[str, Any], place: str) -> dict[str, Any]:
    made = copy.deepcopy(user)
    for key, value in recipe.items():
        own, where = user.get(key, AUTO), f"{place}{key}"
        if isinstance(value, dict):
            if own != AUTO and not isinstance(own, dict):
                raise ContradictionError(where, "must be an object; write one, or auto")
            made[key] = _merged({} if own == AUTO else own, value, f"{where}.")
        elif own in (AUTO, value):
            made[key] = value
        elif key == "pin_memory":
            made[key] = own
        else:
            raise ContradictionError(
                where, f"is {_short(own)}, and the recipe says {value!r}; write auto, or change one of them"
            )
    return made


def _fill_sizes(zero: dict[str, Any], hidden_size: int | None) -> None:
    """Bucket sizes as transformers fills them in (HfTrainerDeepSpeedConfig.trainer_config_finalize). The bucket of
    gradients always: where nothing is said, DeepSpeed's takes a gigabyte of every GPU, however small a model."""
    zero.setdefault("reduce_bucket_size", AUTO)
    by_hidden = {
        "reduce_bucket_size": (1.0, 2),
        "stage3_prefetch_bucket_size": (0.9, 2),
        "stage3_param_persistence_threshold": (10.0, 1),
    }
    for key, (factor, power) in by_hidden.items():
        if zero.get(key) == AUTO:
            if hidden_size is None:
                del zero[key]
            else:
                zero[key] = int(factor * hidden_size**power)
    for key in ("allgather_bucket_size", "stage3_max_live_parameters", "stage3_max_reuse_distance"):
        if zero.get(key) == AUTO:
            del zero[key]


def _autos(value: dict[str, Any], place: str) -> list[str]:
    found = []
    for key, one in value.items():
        if one == AUTO:
            found.append(f"{place}{key}")
        elif isinstance(one, dict):
            found += _autos(one, f"{place}{key}.")
    return found
