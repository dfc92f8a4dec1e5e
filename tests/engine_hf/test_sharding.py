"""Every sharding trains the same weights; rows that share a sequence do not see each other; a checkpoint of one
sharding goes on at another, on another number of ranks."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclm.core.fine_tune_spec import FineTuneStageSpec, LoraSpec
from hpclm.core.layout import StagePaths
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import Ranks, losses, result, run
from tests.support.hf_models import save_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXACT = 2e-6


def weights(paths: StagePaths, step: int = 10) -> dict[str, torch.Tensor]:
    stored = WholeTensors(paths.checkpoint(step))
    return {name: stored.tensor(name) for name in stored.stored}


def same(found: StagePaths, wanted: StagePaths, *, tolerance: float = EXACT, step: int = 10) -> None:
    """Losses, validation losses, weights and the optimizer's state."""
    assert losses(found) == pytest.approx(losses(wanted), abs=tolerance)
    assert losses(found, "validation") == pytest.approx(losses(wanted, "validation"), abs=tolerance)
    ours, theirs = weights(found, step), weights(wanted, step)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 5 * tolerance, name


SHARDINGS: dict[str, dict[str, Any]] = {
    "ddp-2": {"ranks": 2},
    "ddp-4": {"ranks": 4},
    "fsdp-2": {"ranks": 2, "strategy": "fsdp"},
    "fsdp-4-hybrid": {"ranks": 4, "strategy": "fsdp", "sharding": {"group_size": 2}},
    "fsdp-2-checkpointing": {"ranks": 2, "strategy": "fsdp", "sharding": {"checkpointing": True}},
    "zero1-2": {"ranks": 2, "strategy": "zero1"},
    "zero2-2": {"ranks": 2, "strategy": "zero2"},
    "zero3-2": {"ranks": 2, "strategy": "zero3"},
    "zero2-2-offload": {"ranks": 2, "strategy": "zero2", "sharding": {"offload": "optimizer"}},
    "zero3-2-offload-all": {"ranks": 2, "strategy": "zero3", "sharding": {"offload": "all"}},
    "zero3-2-checkpointing": {"ranks": 2, "strategy": "zero3", "sharding": {"checkpointing": True}},
}


@pytest.mark.parametrize("how", SHARDINGS.values(), ids=SHARDINGS)
def test_every_sharding_trains_the_same(shop: Workshop, how: dict[str, Any]) -> None:
    same(shop.run(**how), shop.run())
    assert result(shop.run(**how))["trained_parameters"] == result(shop.run())["trained_parameters"] > 100_000


@pytest.fixture(scope="module")
def disk_operation() -> None:
    """DeepSpeed's, compiled: minutes of a loaded machine, which no run should have to wait for."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        pytest.skip("libaio's headers are not installed (Debian: libaio-dev), so that nothing can be offloaded to disk")
    build = "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()"
    subprocess.run([sys.executable, "-c", build], check=True, capture_output=True)


@pytest.mark.usefixtures("disk_operation")
def test_so_it_does_with_weights_and_state_on_a_disk(shop: Workshop, tmp_path: Path) -> None:
    """ZeRO-Infinity (Rajbhandari et al. 2021, arXiv:2104.07857), of tensors of more than a MiB."""
    wide = save_model(tmp_path / "wide", "llama", hidden_size=256, vocab_size=4000, intermediate_size=704)
    disk = {"offload": "all", "nvme": str(tmp_path / "disk")}
    ranks = Ranks(replace(shop.spec(ranks=2, steps=4, strategy="zero3", sharding=disk), base=str(wide)))
    seen: set[str] = set()
    while any(process.poll() is None for process in ranks.processes):
        seen |= {path.name for path in (tmp_path / "disk").rglob("*.swp")}
        time.sleep(0.1)
    assert ranks.wait() == [0, 0], ranks.log()[-3000:]
    assert any(name.startswith("exp_avg_sq") for name in seen), seen
    same(ranks.paths, run(replace(shop.spec(steps=4), base=str(wide))), tolerance=5e-6, step=4)


@pytest.mark.parametrize("method", ["lora", "p-tuning", "prompt-tuning"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_adapters_too(shop: Workshop, method: str, strategy: str) -> None:
    if method != "lora" and strategy.startswith("zero"):
        pytest.skip("refused by the plan: there is nothing to divide")
    same(shop.run(method=method, ranks=2, strategy=strategy, lr=1e-2), shop.run(method=method, lr=1e-2))


WHOLE_WEIGHTS = {
    "dora": LoraSpec(8, 16.0, targets=["all-linear"], dora=True),
    "modules_to_save": LoraSpec(8, 16.0, targets=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"]),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_so_do_adapters_of_the_tables(shop: Workshop, strategy: str, dora: bool) -> None:
    tables = LoraSpec(8, 16.0, targets=["lm_head", "embed_tokens", "q_proj"], dora=dora)
    how: dict[str, Any] = {"method": "lora", "of_method": {"lora": tables}, "lr": 1e-2}
    same(shop.run(**how, ranks=2, strategy=strategy), shop.run(**how), tolerance=5e-6)


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
@pytest.mark.parametrize("what", WHOLE_WEIGHTS)
def test_so_do_adapters_that_need_whole_weights(shop: Workshop, what: str, strategy: str) -> None:
    """DoRA takes norms of them, and what `modules_to_save` copies is divided in its turn."""
    how: dict[str, Any] = {"method": "lora", "of_method": {"lora": WHOLE_WEIGHTS[what]}, "lr": 1e-2}
    same(shop.run(**how, ranks=2, strategy=strategy), shop.run(**how), tolerance=5e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2"])
@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_models_of_several_architectures(shop: Workshop, kind: str, strategy: str) -> None:
    alone = shop.run(kind)
    assert result(alone)["rows_kept_apart_by"] == "documents"
    assert losses(alone)[-1] < losses(alone)[0]
    same(shop.run(kind, ranks=2, strategy=strategy), alone, tolerance=5e-6)


def test_an_attention_that_is_more_than_ours_is_transformers_own(shop: Workshop) -> None:
    """Gemma 2 caps its scores, which no kernel of torch does; Bloom's positions are distances in the mask."""
    for kind, attention in (("gemma2", "eager"), ("bloom", "one row at a time")):
        alone = shop.run(kind)
        assert result(alone)["rows_kept_apart_by"] == attention
        spec = shop.spec(kind)
        one_by_one = run(replace(spec, batch=replace(spec.batch, micro_batch_size=1, gradient_accumulation_steps=8)))
        same(one_by_one, alone, tolerance=5e-6)


def test_rows_in_one_sequence_train_as_rows_alone(shop: Workshop) -> None:
    """The loss of a step is the mean over its labels, whatever the micro-batches and however the rows are packed."""
    rows = shop.run()
    spec = shop.spec()
    one_by_one = run(replace(spec, batch=replace(spec.batch, micro_batch_size=1, gradient_accumulation_steps=8)))
    same(one_by_one, rows)
    by_mask = shop.spec()
    same(run(replace(by_mask, huggingface=replace(by_mask.huggingface, attention="sdpa"))), rows)


def test_packed_samples_are_seen_by_fewer_steps_and_learned_alike(shop: Workshop) -> None:
    """One step over all rows at once, packed and not: the same loss and the same gradient."""
    found = []
    for packing in (False, True):
        spec = shop.spec(steps=1, data={"packing": packing, "max_seq_length": 160})
        samples = 64
        if packing:
            samples = int(result(run(shop.spec(steps=1, data={"packing": True, "max_seq_length": 160})))["samples"])
            assert samples <= 32
        paths = run(replace(spec, batch=replace(spec.batch, global_batch_size=samples, micro_batch_size=1)))
        found.append((losses(paths)[0], weights(paths, 1)))
    assert found[0][0] == pytest.approx(found[1][0], abs=EXACT)
    for name, value in found[0][1].items():
        assert (found[1][1][name] - value).abs().max() < 1e-5, name


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("fsdp-2", "ddp-1"),
        ("fsdp-2", "fsdp-4-hybrid"),
        ("zero3-2", "ddp-1"),
        ("zero1-2", "zero2-4"),
        ("zero3-2", "fsdp-4"),
        ("ddp-1", "zero3-4"),
        ("zero2-2", "zero2-1"),
        ("fsdp-2", "zero3-1"),
    ],
)
def test_a_run_goes_on_at_another_sharding_and_number_of_ranks(shop: Workshop, first: str, then: str) -> None:
    more: dict[str, dict[str, Any]] = {
        "ddp-1": {}, "fsdp-4": {"ranks": 4, "strategy": "fsdp"}, "zero2-4": {"ranks": 4, "strategy": "zero2"},
        "zero2-1": {"strategy": "zero2"}, "zero3-1": {"strategy": "zero3"},
        "zero3-4": {"ranks": 4, "strategy": "zero3"},
    }  # fmt: skip
    known: dict[str, dict[str, Any]] = {**SHARDINGS, **more}
    goes_on(shop, known[first], known[then])


def test_so_does_what_an_adapter_trains_whole(shop: Workshop) -> None:
    method = {"method": "lora", "of_method": {"lora": WHOLE_WEIGHTS["modules_to_save"]}}
    goes_on(shop, {"ranks": 2, "strategy": "fsdp"}, {}, **method)


def goes_on(shop: Workshop, first: dict[str, Any], then: dict[str, Any], **both: Any) -> None:
    """Begun in one way and ended in another, it is as never stopped."""
    begun = constant(shop.spec(**first, **both))
    run(replace(begun, trainer=replace(begun.trainer, max_steps=5)))
    paths = StagePaths(shop.folder / begun.stage)
    paths.result.unlink()
    other = replace(constant(shop.spec(**then, **both)), stage=begun.stage, stage_dir=begun.stage_dir)
    again = Ranks(other, attempt=2)
    assert again.wait() == [0] * other.parallel.world_size, again.log()[-3000:]
    assert "resumed from step-00000005" in again.log()
    key = f"a run at a constant rate {both}"
    if key not in shop.made:
        shop.made[key] = run(constant(shop.spec(**both)))
    same(paths, shop.made[key])


def constant(spec: FineTuneStageSpec) -> FineTuneStageSpec:
    """At a rate that does not depend on the run's length."""
    return replace(spec, optim=replace(spec.optim, schedule="constant"))
