"""A DeepSpeed configuration: the user's, with its `auto` values filled in from the recipe; refused where it says
something else than the recipe.

Keys: DeepSpeed's docs/_pages/config-json.md. `auto` is what Hugging Face's configurations leave to the Trainer
(transformers/integrations/deepspeed.py).
"""

from __future__ import annotations

import copy
from typing import Any

from hpclm.core.fine_tune_spec import ShardingSpec
from hpclm.core.spec import BatchSpec

AUTO = "auto"
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
# What hpclm does itself, so that a section of it would be done twice, or not at all.
_OURS = {
    "optimizer": "optim of the recipe",
    "scheduler": "optim.schedule of the recipe",
    "activation_checkpointing": "sharding.checkpointing",
    "tensorboard": "tracking of the recipe",
    "wandb": "tracking of the recipe",
    "csv_monitor": "metrics.jsonl of the stage",
    "elasticity": "hpclm resume, on any number of devices",
    "checkpoint": "the recipe's checkpoint section",
    "autotuning": "hpclm's sweeps",
    "curriculum_learning": "nothing of hpclm's",
    "compression_training": "nothing of hpclm's",
    "sparse_attention": "nothing of hpclm's",
}


class ContradictionError(ValueError):
    """A key that says something else than the recipe. `key`: its place, as in zero_optimization.stage."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


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
    for key, instead in _OURS.items():
        value = user.get(key)
        if value not in (None, AUTO, {}) and not (isinstance(value, dict) and value.get("enabled") is False):
            raise ContradictionError(key, f"is hpclm's part; use {instead}, and leave {key} out")
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


def _merged(user: dict[str, Any], recipe: dict[str, Any], place: str) -> dict[str, Any]:
    made = copy.deepcopy(user)
    for key, value in recipe.items():
        own, where = user.get(key, AUTO), f"{place}{key}"
        if isinstance(value, dict):
            if own != AUTO and not isinstance(own, dict):
                raise ContradictionError(where, "must be an object")
            made[key] = _merged({} if own == AUTO else own, value, f"{where}.")
        elif own in (AUTO, value):
            made[key] = value
        elif key == "pin_memory":
            made[key] = own
        else:
            raise ContradictionError(
                where, f"is {own!r}, and the recipe says {value!r}; write auto, or change one of them"
            )
    return made


def _fill_sizes(zero: dict[str, Any], hidden_size: int | None) -> None:
    """Bucket sizes as transformers fills them in (HfTrainerDeepSpeedConfig.trainer_config_finalize)."""
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
