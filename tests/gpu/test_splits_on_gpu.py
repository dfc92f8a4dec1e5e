"""Splits over NCCL have the losses of one rank. Ranks share a GPU where there are too few."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import StagePaths
from hpclm.core.spec import ModelSpec, StageSpec
from tests.gpu.conftest import Run, ranks_of
from tests.support.engine_harness import ALONE, MODERN, SMALL, Split, checkpoint_bytes, losses, stage_spec
from tests.support.hf_harness import hf_spec, rows_in
from tests.support.hf_models import save_model

# one after the other: ranks that share a GPU wait for each other
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.xdist_group("splits")]

STEPS = 6
LLAMA = replace(MODERN, num_layers=4)
MIXTRAL = replace(LLAMA, num_moe_experts=4)
GPT = replace(SMALL, num_layers=4)
KINDS = {GPT: "gpt", LLAMA: "llama", MIXTRAL: "mixtral"}
ZERO = Split(1, 1, 2, zero=True)
SPLITS = [
    (Split(2), GPT),
    (Split(2, sequence=True), LLAMA),
    (Split(1, 2), GPT),
    (Split(1, 2, virtual=2), LLAMA),
    (Split(1, 1, 2), LLAMA),
    (ZERO, LLAMA),
    (replace(ZERO, overlap=True), LLAMA),
    (Split(context=2), LLAMA),
    (Split(1, 1, 2, expert=2), MIXTRAL),
    (Split(2, sequence=True, expert=2, expert_tensor=1, zero=True), MIXTRAL),
    (Split(1, 2, 2, virtual=2, zero=True, overlap=True), GPT),
    (Split(1, 2, 2, virtual=2, expert=2, zero=True, overlap=True), MIXTRAL),
]
Trained = Any


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, rows: Path, device: str, gpus: int) -> Trained:
    """Runs each split once and remembers it."""
    folder = tmp_path_factory.mktemp("splits")

    @functools.cache
    def stage(split: Split, model: ModelSpec, precision: str = "fp32") -> StagePaths:
        spec = _spec(folder / f"{KINDS[model]}-{split}-{precision}", rows, split, model, precision)
        return ranks_of(spec, device, gpus=gpus)

    return stage


def _spec(folder: Path, rows: Path, split: Split, model: ModelSpec, precision: str) -> StageSpec:
    spec = stage_spec(folder, rows, "pretrain", split, model=model, steps=STEPS, lr=2e-3)
    return replace(spec, trainer=replace(spec.trainer, precision=precision, val_check_interval=STEPS))  # type: ignore[arg-type]


@pytest.mark.parametrize(("split", "model"), SPLITS, ids=lambda one: str(one) if isinstance(one, Split) else KINDS[one])
def test_the_curve_is_that_of_one_rank(trained: Trained, split: Split, model: ModelSpec) -> None:
    found = losses(trained(split, model))
    assert len(found) == STEPS
    assert found == pytest.approx(losses(trained(ALONE, model)), rel=1e-4)


@pytest.mark.parametrize(
    ("split", "model"),
    [(Split(context=2), LLAMA), (Split(1, 2, 2, virtual=2, expert=2, zero=True, overlap=True), MIXTRAL)],
    ids=["context", "everything"],
)
def test_in_bf16_it_is_near(trained: Trained, split: Split, model: ModelSpec) -> None:
    """With flash kernels, whose queries under context parallelism are the last of the keys."""
    assert losses(trained(split, model, "bf16")) == pytest.approx(losses(trained(ALONE, model, "bf16")), rel=2e-2)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, rows: Path, device: str, gpus: int) -> None:
    """With all of it, and an asynchronous save."""
    split = Split(1, 2, 2, virtual=2, expert=2, zero=True, overlap=True)

    def spec(name: str, steps: int) -> StageSpec:
        made = _spec(tmp_path / name, rows, split, MIXTRAL, "fp32")
        trainer = replace(made.trainer, deterministic=True, max_steps=steps)
        checkpoint = replace(made.checkpoint, asynchronous=True, save_interval_steps=3)
        return replace(made, trainer=trainer, checkpoint=checkpoint)

    whole = ranks_of(spec("whole", 6), device, gpus=gpus)
    ranks_of(spec("halved", 3), device, gpus=gpus)
    resumed = spec("halved", 6)
    (Path(resumed.stage_dir) / "result.json").unlink()
    halved = ranks_of(resumed, device, gpus=gpus, attempt=2)
    assert losses(halved) == losses(whole)
    assert checkpoint_bytes(halved, 6) == checkpoint_bytes(whole, 6)


@pytest.mark.parametrize("split", [Split(2), Split(1, 2)], ids=str)
def test_prompts_are_tuned_as_on_one_rank(
    tmp_path: Path, trained: Trained, rows: Path, device: str, gpus: int, split: Split
) -> None:
    base = str(trained(ALONE, LLAMA).checkpoints)
    found = []
    for one in (ALONE, split):
        spec = stage_spec(tmp_path / str(one), rows, "p-tuning", one, model=LLAMA, base=base, steps=STEPS)
        found.append(losses(ranks_of(spec, device, gpus=gpus)))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_models_of_transformers_are_trained_as_on_one_rank(
    tmp_path: Path, run: Run, device: str, gpus: int, strategy: str
) -> None:
    pytest.importorskip("transformers", reason="engine hf needs transformers")
    pytest.importorskip("peft", reason="engine hf needs peft")
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed")
    base, data = save_model(tmp_path / "llama", head_dim=32), rows_in(tmp_path / "rows")

    def spec(name: str, **how: Any) -> FineTuneStageSpec:
        return hf_spec(tmp_path / name, base, data, steps=STEPS, **how)

    wanted = losses(ranks_of(spec("alone"), device, gpus=gpus))
    assert losses(ranks_of(spec("two", ranks=2, strategy=strategy), device, gpus=gpus)) == pytest.approx(
        wanted, rel=1e-4
    )
