"""What is imported can be planned on a real model, and its rates are those of transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.learning_rate import learning_rate
from hpclm.core.spec import OptimSpec
from hpclm.planning import make_plan, stage_specs
from hpclm.recipe import load
from hpclm.recipe.importers import KeyFate
from hpclm.recipe.importers.fine_tuning.training_arguments import SCHEDULES
from hpclm.recipe.loading import translated
from tests.support.fine_tuning_files import AXOLOTL, LLAMA_FACTORY, TRAINER, write_beside, write_config, write_json
from tests.support.hf_models import save_model

ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "offload_optimizer": {"device": "cpu"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("imported")
    save_model(made / "base")
    write_beside(made)
    (made / "ds.json").write_text(json.dumps(ZERO))
    return made


@pytest.mark.parametrize(
    ("sample", "changes", "overrides"),
    [
        (LLAMA_FACTORY, {}, []),
        (LLAMA_FACTORY, {"finetuning_type": "full", "deepspeed": "ds.json", "template": "qwen"}, []),
        (LLAMA_FACTORY, {"dataset": "words,talk", "template": "chatml", "fsdp": "full_shard"}, []),
        (AXOLOTL, {}, []),
        (AXOLOTL, {"adapter": None, "fsdp_config": {"offload_params": True}}, []),
        (TRAINER, {}, ["hpclm.model.checkpoint=base", "hpclm.instructions.train=[data/words.jsonl]"]),
    ],
)
def test_an_imported_file_can_be_planned(
    folder: Path, sample: dict[str, Any], changes: dict[str, Any], overrides: list[str]
) -> None:
    path = write_config(folder, sample, **changes)
    overrides = [*overrides, "hpclm.instructions.max_seq_length=96"] if sample is TRAINER else overrides
    plan = make_plan(load(path, overrides, devices_per_node=2))
    assert not plan.errors
    (spec,) = stage_specs(plan, "run", folder / "run")
    assert isinstance(spec, FineTuneStageSpec)
    assert spec.batch.gradient_accumulation_steps * spec.batch.micro_batch_size * 2 == spec.batch.global_batch_size


def test_every_key_that_transformers_writes_is_known(folder: Path) -> None:
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    for kind in (TrainingArguments, Seq2SeqTrainingArguments):
        made = kind(output_dir="out", use_cpu=True, report_to="none", push_to_hub=False)
        path = folder / "written.json"
        path.write_text(made.to_json_string())  # type: ignore[no-untyped-call]
        given = ["hpclm.model.checkpoint=base", "hpclm.instructions.train=[data/words.jsonl]"]
        notes = translated(path, given)[2]
        assert [note.key for note in notes if note.fate is KeyFate.UNKNOWN] == []


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 4])
def test_rates_are_those_of_transformers(folder: Path, name: str, warmup: int) -> None:
    import torch
    from transformers import get_scheduler

    if name == "inverse_sqrt" and not warmup:
        pytest.skip("refused: transformers has a time scale of its own there")
    options = {"cosine_with_min_lr": {"min_lr": 2e-5}, "polynomial": {"power": 1.0, "lr_end": 1e-6}}.get(name, {})
    changes = {"lr_scheduler_type": name, "lr_scheduler_kwargs": options, "warmup_steps": warmup, "max_steps": 20}
    given = ["hpclm.model.checkpoint=base", "hpclm.instructions.train=[data/words.jsonl]"]
    optim = load(write_json(folder, TRAINER, **changes), given).stages[0].recipe.optim
    assert optim is not None
    spec = OptimSpec(
        lr=optim.lr, min_lr=optim.min_lr, schedule=optim.schedule.name, from_zero=optim.schedule.from_zero,
        warmup_steps=optim.schedule.warmup_steps,
    )  # fmt: skip
    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    schedule = get_scheduler(name, theirs, warmup, 20, scheduler_specific_kwargs=options)
    for step in range(20):
        assert learning_rate(spec, step, 20) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9, abs=1e-15)
        theirs.step()
        schedule.step()
