"""Stages of engine hf for tests: specs written to a folder, ranks over gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hpclm.core import fine_tune_spec as hf
from hpclm.core import spec as plan
from hpclm.core.parallel_spec import ParallelSpec
from tests.support.hf_models import instruction_rows, write_rows


def rows_in(folder: Path) -> dict[str, Path]:
    """Files of training, validation and test rows."""
    parts = {"train": (64, 1), "validation": (10, 2), "test": (9, 3)}
    return {
        part: write_rows(folder / f"{part}.jsonl", instruction_rows(count, seed))
        for part, (count, seed) in parts.items()
    }


def hf_spec(folder: Path, base: Path, rows: dict[str, Path], *, ranks: int = 1, **changes: Any) -> hf.FineTuneStageSpec:
    """A stage of 10 steps of 8 rows in micro-batches of 2, in `folder`."""
    strategy, method = changes.pop("strategy", "ddp"), changes.pop("method", "full")
    steps, precision = changes.pop("steps", 10), changes.pop("precision", "fp32")
    optimizer = changes.pop("optimizer", "adamw")
    sharding = hf.ShardingSpec(strategy, **changes.pop("sharding", {}))
    if strategy.startswith("zero"):
        from hpclm.engines.hf.deepspeed_config import completed

        filled = completed({}, sharding, plan.BatchSpec(8, 2, 4 // ranks), ranks, precision, clip=1.0)
        sharding = replace(sharding, deepspeed=filled)
    data = hf.InstructionData(
        train=[str(rows["train"])],
        validation=[str(rows["validation"])],
        test=[str(rows["test"])],
        **{"template": "stanford", "max_seq_length": 128, **changes.pop("data", {})},
    )
    spec = hf.FineTuneStageSpec(
        run="test",
        stage=folder.name,
        stage_dir=str(folder),
        task="fine-tune",
        device="cpu",
        base=str(base),
        parallel=ParallelSpec(1, 1, ranks, ranks, 1, ranks),
        batch=plan.BatchSpec(8, 2, 4 // ranks),
        trainer=plan.TrainerSpec(precision, max_steps=steps, val_check_interval=changes.pop("validate", 5)),
        optim=plan.OptimSpec(
            lr=changes.pop("lr", 1e-3), warmup_steps=3, schedule=changes.pop("schedule", "cosine"), from_zero=True,
            name=optimizer,
            beta2=0.999, weight_decay=changes.pop("weight_decay", 0.01),
        ),
        checkpoint=plan.CheckpointSpec(save_interval_steps=changes.pop("save", None), keep_last=3),
        data=data,
        method=hf.MethodSpec(method, **changes.pop("of_method", {})),
        sharding=sharding,
        generation=plan.GenerationSpec(max_new_tokens=12, batch_size=4),
    )  # fmt: skip
    return replace(spec, **changes)
