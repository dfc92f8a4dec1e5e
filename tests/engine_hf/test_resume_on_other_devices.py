"""`hpclm resume --devices-per-node`: a run goes on with the same batches on another number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpclm.core.errors import HpclmError
from hpclm.core.files import read_lines
from hpclm.core.layout import RunPaths
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.runs.cancel import cancel
from hpclm.runs.record import Run, read_run
from hpclm.runs.rescaling import _rescaled
from hpclm.runs.resume import resume
from hpclm.runs.status import status_of
from hpclm.runs.submit import Request, prepare, submit
from tests.engine_hf.conftest import Workshop
from tests.support.harness import until_over
from tests.support.waiting import wait_until

RECIPE = """
version: 1
name: again
task: fine-tune
model: {{checkpoint: {model}}}
fine_tune: {{method: full}}
sharding: {{strategy: {strategy}}}
resources: {{nodes: 1, devices_per_node: 2, device: cpu, time_limit_min: 10}}
batch: {{global: 8, micro: 2}}
trainer: {{max_steps: {steps}, val_check_interval: 20}}
optim: {{lr: 1.0e-3, schedule: {{name: constant}}}}
checkpoint: {{save_interval_steps: 10}}
instructions: {{train: [{train}], validation: [{validation}], template: stanford, max_seq_length: 128}}
"""


def started(shop: Workshop, folder: Path, strategy: str, steps: int) -> Run:
    recipe = folder / "again.yaml"
    recipe.write_text(RECIPE.format(model=shop.model("llama"), strategy=strategy, steps=steps, **shop.rows))
    return submit(prepare(Request(recipe, runs_dir=folder / "runs")))


def losses_of(paths: RunPaths) -> list[float]:
    return [row["loss"] for row in read_lines(paths.stage("fine-tune").metrics) if row["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_with_more_and_with_fewer_ranks(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = started(shop, tmp_path / "whole", "fsdp", 60)
    assert until_over(whole).state == "completed"
    (tmp_path / "broken").mkdir()
    run = started(shop, tmp_path / "broken", "fsdp", 60)
    for count in (4, 1):
        before = len(losses_of(run.paths))
        wait_until("some steps", lambda before=before: len(losses_of(run.paths)) >= before + 5, pause_s=0.01)  # type: ignore[misc]
        cancel(read_run(run.paths.root))
        assert until_over(read_run(run.paths.root)).state == "cancelled"
        again, stages = resume(read_run(run.paths.root), devices_per_node=count)
        assert stages == ["fine-tune"]
        assert again.record.stage("fine-tune").job.tasks_per_node == count
    assert until_over(read_run(run.paths.root)).state == "completed"
    assert status_of([read_run(run.paths.root)])[0].stages[0].step == 60
    assert losses_of(run.paths) == pytest.approx(losses_of(whole.paths), abs=1e-4)


@pytest.mark.parametrize(
    ("nodes", "devices", "words"),
    [
        (1, 3, "cannot be shared by 3 replicas; choose 1, 2 or 4 devices in all"),
        (2, 4, "cannot be shared by 8 replicas"),
    ],
)
def test_a_number_that_does_not_divide_the_batch_is_refused(
    shop: Workshop, nodes: int, devices: int, words: str
) -> None:
    with pytest.raises(HpclmError, match=words):
        _rescaled(shop.spec(ranks=2), nodes, devices)


def test_what_follows_from_the_number_follows(shop: Workshop) -> None:
    found = _rescaled(shop.spec(ranks=2, strategy="zero2"), 2, 2)
    assert found.parallel == ParallelSpec(1, 1, 4, 4, 2, 2)
    assert found.batch.gradient_accumulation_steps == 1  # type: ignore[union-attr]
    assert found.sharding.deepspeed["gradient_accumulation_steps"] == 1  # type: ignore[union-attr]
    assert found.needs.memory_bytes is None
    hybrid = shop.spec(ranks=4, strategy="fsdp", sharding={"group_size": 2})
    with pytest.raises(HpclmError, match="group_size 2 does not divide 1 ranks"):
        _rescaled(hybrid, 1, 1)


def test_tensor_and_pipeline_ranks_stay(shop: Workshop) -> None:
    from tests.support.engine_harness import Split, stage_spec

    spec = stage_spec(shop.folder / "megatron", shop.folder, "pretrain", Split(2, 1, 2))
    assert _rescaled(replace(spec), 1, 2).parallel.data == 1
    with pytest.raises(HpclmError, match="3 devices are not a multiple of tensor 2 × pipeline 1"):
        _rescaled(spec, 1, 3)
