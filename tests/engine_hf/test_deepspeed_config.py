"""DeepSpeed's configuration: what Hugging Face's users have is filled in as they expect, and DeepSpeed takes it."""

from __future__ import annotations

from typing import Any

import pytest

from hpclm.core.fine_tune_spec import ShardingSpec
from hpclm.core.spec import BatchSpec
from hpclm.engines.hf import deepspeed_config, deepspeed_keys
from hpclm.engines.hf.deepspeed_config import AUTO, STAGES, ContradictionError, completed
from hpclm.engines.hf.model_checks import DEFAULT_TARGETS

BATCH = BatchSpec(16, 2, 4)
# As in transformers' documentation (docs/source/en/deepspeed.md), without optimizer and scheduler.
USUAL: dict[str, Any] = {
    "fp16": {
        "enabled": AUTO,
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": AUTO},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": AUTO,
        "stage3_prefetch_bucket_size": AUTO,
        "stage3_param_persistence_threshold": AUTO,
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": AUTO,
    "gradient_clipping": AUTO,
    "steps_per_print": 2000,
    "train_batch_size": AUTO,
    "train_micro_batch_size_per_gpu": AUTO,
    "wall_clock_breakdown": False,
}


def complete(user: dict[str, Any], strategy: Any = "zero3", precision: str = "bf16", **how: Any) -> dict[str, Any]:
    sharding = ShardingSpec(strategy, **{"offload": "all", **how})
    return completed(user, sharding, BATCH, 2, precision, clip=1.0, hidden_size=64)


def test_the_usual_one_is_filled_in() -> None:
    before = repr(USUAL)
    made = complete(USUAL)
    assert (made["train_batch_size"], made["train_micro_batch_size_per_gpu"]) == (16, 2)
    assert (made["gradient_accumulation_steps"], made["gradient_clipping"]) == (4, 1.0)
    assert made["bf16"] == {"enabled": True}
    assert made["fp16"] == {**USUAL["fp16"], "enabled": False}
    zero = made["zero_optimization"]
    # HfTrainerDeepSpeedConfig.trainer_config_finalize
    assert zero["reduce_bucket_size"] == 64 * 64
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 64 * 64)
    assert zero["stage3_param_persistence_threshold"] == 10 * 64
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert made["steps_per_print"] == 2000
    assert AUTO not in str(made)
    assert repr(USUAL) == before


@pytest.mark.parametrize("strategy", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("user", [{}, USUAL], ids=["none", "usual"])
def test_deepspeed_takes_what_is_made(strategy: str, precision: str, user: dict[str, Any]) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    user = {**user, "zero_optimization": {**user.get("zero_optimization", {}), "stage": AUTO}}
    offload = "all" if strategy == "zero3" else "none"
    if strategy != "zero3":
        for key in ("offload_optimizer", "offload_param"):
            user["zero_optimization"].pop(key, None)
    sharding = ShardingSpec(strategy, offload=offload)  # type: ignore[arg-type]
    made = completed(user, sharding, BatchSpec(16, 2, 8), 1, precision, clip=1.0, hidden_size=64)
    assert AUTO not in str(made)
    taken = DeepSpeedConfig(made)
    assert taken.zero_config.stage == STAGES[strategy]
    assert taken.train_batch_size == 16
    assert taken.gradient_accumulation_steps == 8


def test_completing_twice_changes_nothing() -> None:
    made = complete(USUAL)
    assert complete(made) == made


def test_what_hpclm_knows_of_deepspeed_is_what_the_installed_one_has() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig as Optimizer
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadParamConfig as Parameter

    known = {"stage", *deepspeed_config.FLAGS, *deepspeed_config.NUMBERS, *deepspeed_config.OBJECTS}
    fields = {info.alias or name: info for name, info in DeepSpeedZeroConfig.model_fields.items()}
    assert known == set(fields)
    assert set(deepspeed_config.OFFLOAD) == {*Optimizer.model_fields, *Parameter.model_fields}
    numbers = {name for name, info in fields.items() if info.annotation is int}
    assert set(deepspeed_config.NUMBERS) == numbers
    flags = {
        name
        for name, info in fields.items()
        if info.annotation in (bool, bool | None) or str(info.annotation) == "typing.Optional[bool]"
    }
    assert set(deepspeed_config.FLAGS) == flags


def test_keys_that_deepspeed_no_longer_has_are_known() -> None:
    from deepspeed.runtime import config

    assert {*deepspeed_keys.OURS, *deepspeed_keys.REMOVED} >= set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert set(deepspeed_keys.REMOVED_OF_ZERO) == set(config._REMOVED_ZERO_CONFIG_KEYS)


def test_zero1_takes_a_factor_of_the_gradients() -> None:
    assert complete({"gradient_predivide_factor": 2.0}, "zero1", offload="none")["gradient_predivide_factor"] == 2.0


def test_removed_keys_that_are_off_are_left_out() -> None:
    assert "sparse_gradients" not in complete({"sparse_gradients": False, "nebula": {"enabled": False}})


def test_what_hpclm_knows_of_pefts_defaults_is_what_the_installed_one_has() -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    assert set(KNOWN) == DEFAULT_TARGETS


@pytest.mark.parametrize(
    "user",
    [
        {"optimizer": AUTO}, {"scheduler": None}, {"wandb": {"enabled": False}}, {"activation_checkpointing": {}},
        {"fp16": AUTO}, {"zero_optimization": AUTO}, {"zero_optimization": {"stage": 3.0}},
        {"zero_optimization": {"offload_optimizer": AUTO}}, {"gradient_clipping": 1},
        {"zero_optimization": {"cpu_offload": False}}, {"later_deepspeeds_key": {"x": 1}}, {"_comment": "mine"},
    ],
    ids=str,
)  # fmt: skip
def test_what_agrees_is_taken(user: dict[str, Any]) -> None:
    made = complete(user)
    assert made["zero_optimization"]["stage"] == 3
    assert made["gradient_clipping"] == 1


def test_a_bucket_without_a_known_size_is_deepspeeds_own() -> None:
    user = {"zero_optimization": {"reduce_bucket_size": AUTO, "allgather_bucket_size": AUTO}}
    made = completed(user, ShardingSpec("zero2"), BATCH, 2, "fp32", clip=1.0, hidden_size=None)
    assert "reduce_bucket_size" not in made["zero_optimization"]
    assert "allgather_bucket_size" not in made["zero_optimization"]


def test_a_device_of_offloading_that_is_another_is_refused() -> None:
    user = {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}
    with pytest.raises(ContradictionError, match="is 'nvme', and the recipe says 'cpu'") as found:
        complete(user)
    assert found.value.key == "zero_optimization.offload_optimizer.device"
