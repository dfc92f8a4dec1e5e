"""Flags of `megatron.arguments` that Megatron-LM refuses beside each other are refused by the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclm.planning import make_plan
from hpclm.planning.memory_estimate import MemoryEstimate
from hpclm.recipe import load
from tests.programs.test_trainers import megatron_recipe


def messages_of(folder: Path, changes: tuple[tuple[str, object], ...]) -> list[str]:
    return [str(one) for one in make_plan(load(megatron_recipe(folder, *changes))).errors]


@pytest.mark.parametrize(
    ("words", "keys", "expected"),
    [
        ("--use-precision-aware-optimizer", {}, "needs parallel.distributed_optimizer"),
        ("--exp-avg-dtype fp8", {}, "fp8 needs --use-precision-aware-optimizer"),
        ("--fp8-param-gather", {"parallel.distributed_optimizer": True}, "needs --fp8-format"),
        ("--fp8-format e4m3 --fp4-format e2m1", {}, "--fp4-format and --fp8-format exclude each other"),
        ("--optimizer-cpu-offload", {}, "needs --use-precision-aware-optimizer"),
        ("--moe-enable-deepep", {}, "needs --moe-token-dispatcher-type flex"),
        ("--moe-enable-deepep --moe-token-dispatcher-type alltoall", {}, "needs --moe-token-dispatcher-type flex"),
        (
            "--moe-expert-capacity-factor 1.0 --moe-router-load-balancing-type sinkhorn",
            {},
            "--moe-router-load-balancing-type sinkhorn exclude each other; choose aux_loss",
        ),
        (
            "--moe-layer-freq ([0]*3+[1]*4)",
            {"model.num_moe_experts": 4},
            "[0]*3+[1]*4 is for 7 layers, and model.num_layers is 4",
        ),
        ("--moe-layer-freq [0,1,1]", {"model.num_moe_experts": 4}, "[0,1,1] is for 3 layers"),
        ("--replication", {}, "needs --replication-jump"),
        ("--load-main-params-from-ckpt", {}, "needs --no-load-optim"),
        ("--hierarchical-context-parallel-sizes 2 2", {}, "2 2 makes 4, and parallel.context is 1"),
        ("--cp-comm-type a2a+p2p", {}, "a2a+p2p needs --hierarchical-context-parallel-sizes"),
        ("--mtp-num-layers 1", {}, "needs model.position_embedding rope, not learned"),
        ("--ckpt-format fsdp_dtensor", {}, "fsdp_dtensor needs --use-megatron-fsdp"),
    ],
)
def test_arguments_that_megatron_lm_refuses_together(
    tmp_path: Path, words: str, keys: dict[str, object], expected: str
) -> None:
    """As validate_args of core_v0.16.0 and megatron-core's configurations refuse them."""
    found = messages_of(tmp_path, (("megatron.arguments", words.split()), *keys.items()))
    assert any(expected in one for one in found), found


@pytest.mark.parametrize(
    "words",
    [
        "--exp-avg-dtype fp32", "--moe-layer-freq [0,1,1]", "--mtp-num-layers 0", "--multi-latent-attention",
        "--moe-layer-freq 2", "--moe-layer-freq [0,1]*2", "--moe-layer-freq ([0]*1+[1]*3)",
        "--moe-expert-capacity-factor 1.0", "--ckpt-format torch_dist", "--cuda-graph-impl local",
        "--moe-enable-deepep --moe-token-dispatcher-type flex", "--replication --replication-jump 2",
    ],
)  # fmt: skip
def test_arguments_that_it_takes(tmp_path: Path, words: str) -> None:
    assert not messages_of(tmp_path, (("megatron.arguments", words.split()),))


def test_memory_is_estimated_unless_arguments_change_it(tmp_path: Path) -> None:
    def memory(*words: str) -> MemoryEstimate | None:
        changes = (("resources.device", "gpu"), ("megatron.arguments", list(words)))
        return make_plan(load(megatron_recipe(tmp_path, *changes))).stages[0].memory

    assert memory() is not None
    for words in (["--fp8-format", "hybrid"], ["--enable-cuda-graph"], ["--num-distributed-optimizer-instances", "1"]):
        assert memory(*words) is None, words


def test_a_rank_that_no_gpu_can_hold_is_refused(tmp_path: Path) -> None:
    large = {"num_layers": 96, "hidden_size": 12288, "num_attention_heads": 96, "ffn_hidden_size": 49152}
    changes = [*((f"model.{key}", value) for key, value in large.items()), ("resources.device", "gpu")]
    found = messages_of(tmp_path, (*changes, ("megatron.arguments", []), ("trainer.precision", "bf16")))
    assert any("a rank needs an estimated" in one and "raise tensor or pipeline" in one for one in found), found
