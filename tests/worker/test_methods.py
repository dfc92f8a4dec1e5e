"""Methods of prompt learning on real ranks: encoders, new tasks next to trained ones, NeMo's task names."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclm.core.exit_codes import ExitCode
from hpclm.core.files import read_lines
from hpclm.core.layout import StagePaths
from hpclm.core.spec import PromptData, PromptSpec, StageSpec
from hpclm.formats.checkpoint_manifest import read_manifest
from hpclm.planning.trained_prompts import for_archive
from tests.support.engine_harness import ALONE, Ranks, Split, losses, predictions, result, run, stage_spec, write_data
from tests.support.nemo_files import saved, write_members
from tests.support.processes import hpclm
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


class Bench:
    """A small base model, and stages on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        write_data(self.data)
        self.base = run(stage_spec(folder / "base", self.data, "pretrain", steps=60)).checkpoints

    def spec(self, name: str, task: str, split: Split = ALONE, **changes: Any) -> StageSpec:
        return stage_spec(self.folder / name, self.data, task, split, base=str(self.base), **changes)

    def answers(self, prompts: StagePaths, split: Split = ALONE) -> list[str]:
        spec = self.spec(f"answers-{prompts.name}-{split}", "evaluate", split, prompts=str(prompts.checkpoints))
        return predictions(run(spec))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("methods"))


def reading(data: PromptData, files: dict[str, Path]) -> PromptData:
    """The data, its rows from other files."""
    train, validation, test = ([str(files[part])] for part in ("train", "validation", "test"))
    return replace(data, train=train, validation=validation, test=test)


def only(spec: StageSpec, *tasks: str) -> StageSpec:
    """The stage with the templates of some tasks alone; its files hold those tasks' rows."""
    data = spec.data
    assert data is not None
    folder = Path(spec.stage_dir)
    folder.mkdir(parents=True)
    files = {}
    for part in ("train", "validation", "test"):
        rows = Path(getattr(data, part)[0]).read_text().splitlines()
        chosen = [row for row in rows if any(f'"{task}"' in row for task in tasks)]
        files[part] = folder / f"{part}.jsonl"
        files[part].write_text("".join(row + "\n" for row in chosen))
    templates = [template for template in spec.templates if template.taskname in tasks]
    return replace(spec, templates=templates, data=reading(data, files))


@pytest.mark.parametrize("encoder", ["biglstm", "embedding"])
def test_an_encoder_learns_whatever_the_split(bench: Bench, encoder: str) -> None:
    alone = run(bench.spec(f"alone-{encoder}", "p-tuning", encoder=encoder))
    curve = losses(alone)
    assert sum(curve[-4:]) < sum(curve[:4])
    split = run(bench.spec(f"split-{encoder}", "p-tuning", Split(2, 2), encoder=encoder))
    assert losses(split) == pytest.approx(curve, rel=1e-5)
    assert bench.answers(split, Split(2)) == bench.answers(alone)


@pytest.mark.parametrize("task", ["p-tuning", "prompt-tuning"])
def test_a_new_task_leaves_the_old_one_as_it_was(bench: Bench, task: str) -> None:
    first = run(only(bench.spec(f"first-{task}", task), "copy"))
    added = run(bench.spec(f"added-{task}", task, prompts=str(first.checkpoints)))
    # the old task's rows were in the files, and none of them was trained on
    assert "rows belong to frozen tasks" in added.all_attempts()[0].log(0).read_text()
    old = predictions(run(only(bench.spec(f"old-{task}", "evaluate", prompts=str(first.checkpoints)), "copy")))
    again = predictions(run(only(bench.spec(f"again-{task}", "evaluate", prompts=str(added.checkpoints)), "copy")))
    assert again == old
    # the new one alone would have trained the same: nothing of the old one is in its way
    fresh = run(only(bench.spec(f"fresh-{task}", task), "swap"))
    assert losses(added)[-1] < losses(added)[0]
    assert losses(added)[0] == pytest.approx(losses(fresh)[0], rel=0.2)
    both = bench.answers(added, Split(1, 2))
    assert len(both) == 18
    assert both == bench.answers(added)


def test_tasks_can_be_added_again_and_a_stopped_addition_goes_on(bench: Bench) -> None:
    first = run(only(bench.spec("chain-1", "prompt-tuning"), "copy"))
    spec = bench.spec("chain-2", "p-tuning", prompts=str(first.checkpoints), steps=10)
    whole = run(
        replace(spec, stage_dir=str(bench.folder / "chain-2-whole"), trainer=replace(spec.trainer, max_steps=20))
    )
    half = run(spec)
    half.result.unlink()
    rest = run(replace(spec, trainer=replace(spec.trainer, max_steps=20)), attempt=2)
    assert losses(rest) == losses(whole)


def test_nothing_new_to_learn_is_said(bench: Bench) -> None:
    first = run(bench.spec("all", "prompt-tuning", steps=2, validate=2))
    ranks = Ranks(bench.spec("none-new", "prompt-tuning", prompts=str(first.checkpoints)))
    assert ranks.wait() == [ExitCode.DATA]
    assert "already contains prompts for copy, swap" in ranks.record(0)["message"]


def test_in_nemos_way_the_name_of_a_task_changes_what_it_learns(bench: Bench) -> None:
    def curve(name: str, encoder: str) -> list[float]:
        spec = bench.spec(f"named-{name}-{encoder}", "p-tuning", steps=5, validate=5)
        assert spec.data is not None
        folder = Path(spec.stage_dir)
        folder.mkdir()
        files = {}
        for part in ("train", "validation", "test"):
            files[part] = folder / f"{part}.jsonl"
            files[part].write_text(Path(getattr(spec.data, part)[0]).read_text().replace('"copy"', f'"{name}"'))
        templates = [replace(one, taskname=one.taskname.replace("copy", name)) for one in spec.templates]
        data = replace(reading(spec.data, files), semantics="nemo")
        prompt = PromptSpec(encoder, 32, 2)  # type: ignore[arg-type]
        made = run(replace(spec, templates=templates, data=data, prompt=prompt))
        if encoder == "tpmlp" and name == "a":
            tuned = bench.spec(f"{folder.name}-answers", "evaluate", Split(2), prompts=str(made.checkpoints))
            assert result(run(replace(tuned, templates=templates, data=data)))["examples"] == 18
        return losses(made)

    # one letter: one token, whose embedding is then the first row of the input
    assert curve("a", "tpmlp") != curve("b", "tpmlp")
    assert curve("a", "biglstm") != curve("b", "biglstm")


def test_a_name_is_only_a_name_otherwise(bench: Bench) -> None:
    """Each task's input is drawn by its name, so what is compared is that no embedding of it is in the checkpoint."""
    made = run(bench.spec("plain", "p-tuning", steps=2, validate=2))
    tensors = read_manifest(made.checkpoint(2)).tensors
    assert sorted(name for name in tensors if not name.startswith("optimizer.")) == [
        "prompts.encoder.first.bias",
        "prompts.encoder.first.weight",
        "prompts.encoder.second.bias",
        "prompts.encoder.second.weight",
        "prompts.inputs.task_copy",
        "prompts.inputs.task_swap",
    ]


@pytest.mark.parametrize("split", [ALONE, Split(2, sequence=True), Split(1, 2, 2)], ids=str)
def test_metrics_of_made_answers_stand_beside_the_loss(bench: Bench, split: Split) -> None:
    """And they change nothing of what is trained, sequence parallelism or not."""
    spec = bench.spec(f"scored-{split}", "prompt-tuning", split)
    trainer = replace(spec.trainer, val_metrics=["exact_match", "rouge_l"], val_metric_rows=12)
    scored = run(replace(spec, trainer=trainer))
    rows = [row for row in read_lines(scored.metrics) if row["kind"] == "validation"]
    assert all(0 <= row["exact_match"] <= row["rouge_l"] <= 1 for row in rows)
    assert result(scored)["val_metrics"] == {name: rows[-1][name] for name in ("exact_match", "rouge_l")}
    if split != ALONE:
        reference = StagePaths(bench.folder / "scored-tp1-pp1-dp1")
        assert losses(scored) == pytest.approx(losses(reference), rel=1e-5)
        assert result(scored)["val_metrics"] == result(reference)["val_metrics"]


def test_nemo_archives_answer_as_the_checkpoints_they_were_made_from(bench: Bench) -> None:
    """Model and prompts out to .nemo files, and asked with over tensor and pipeline ranks."""
    tuned = run(bench.spec("archived", "p-tuning"))
    made = {"model": bench.base, "prompts": tuned.checkpoints}
    for name, source in made.items():
        argv = ["model", "convert", str(source), str(bench.folder / f"{name}.nemo"), "--to", "nemo"]
        hpclm(*argv)
    spec = bench.spec("from-archives", "evaluate", Split(2, 2), prompts=str(bench.folder / "prompts.nemo"))
    answers = predictions(run(replace(spec, base=str(bench.folder / "model.nemo"))))
    assert answers == bench.answers(tuned)


def test_one_table_of_an_archive_serves_every_task_it_was_trained_for(bench: Bench) -> None:
    """NeMo r1.17 to r1.22 stores it under the first task's name."""
    table = torch.randn((4, 32), generator=torch.Generator().manual_seed(5))
    names = {"first-alone": ["copy"], "both": ["copy", "swap"]}
    for name, tasks in names.items():
        stored = {f"prompt_table.{task}.prompt_embeddings.weight": table for task in tasks}
        members = {
            "model_config.yaml": b"new_tasks: [copy, swap]\n",
            "model_weights.ckpt": saved({"prompt_table": stored}),
        }
        write_members(bench.folder / f"{name}.nemo", members)

    def answers(name: str, split: Split) -> list[str]:
        path = str(bench.folder / f"{name}.nemo")
        spec = bench.spec(f"from-{name}", "evaluate", split, prompts=path)
        return predictions(run(replace(spec, templates=[for_archive(path, one) for one in spec.templates])))

    assert answers("first-alone", Split(2, 2)) == answers("both", ALONE)


def test_an_evaluation_that_is_stopped_goes_on_where_it_was(bench: Bench) -> None:
    """Ranks agree to stop, nothing is answered twice, and the answers are those of an undisturbed evaluation."""
    rows = bench.folder / "many.jsonl"
    rows.write_text((bench.data / "test.jsonl").read_text() * 60)
    spec = bench.spec("stopped", "evaluate", Split(1, 1, 2))
    assert spec.data is not None
    spec = replace(spec, data=replace(spec.data, test=[str(rows)]))
    ranks = Ranks(spec)
    paths = ranks.paths

    def begun() -> bool:
        return all(paths.prediction(rank).is_file() and paths.prediction(rank).stat().st_size for rank in (0, 1))

    wait_until("the first answers", begun, seen=ranks.log, pause_s=0.01)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    assert ranks.wait() == [ExitCode.STOPPED] * 2
    assert not paths.result.exists()
    first = {rank: paths.prediction(rank).read_text() for rank in (0, 1)}
    answered = sum(text.count("\n") for text in first.values())
    assert 0 < answered < 1080
    # killed in the middle of a line
    with paths.prediction(1).open("a") as stream:
        stream.write('{"index": 7, "predi')
    whole = run(spec, attempt=2)
    assert f"{answered} rows are answered already" in whole.attempt(2).log(0).read_text()
    for rank, text in first.items():
        assert whole.prediction(rank).read_text().startswith(text)
    indices = [row["index"] for rank in (0, 1) for row in read_lines(whole.prediction(rank))]
    assert sorted(indices) == list(range(1080))
    undisturbed = run(replace(spec, stage_dir=f"{spec.stage_dir}-not"))
    assert predictions(whole) == predictions(undisturbed)
    assert result(whole)["scores"] == result(undisturbed)["scores"]


def test_predictions_of_other_settings_are_made_anew(bench: Bench) -> None:
    spec = bench.spec("changed", "evaluate")
    before = run(spec)
    before.result.unlink()
    assert spec.generation is not None
    after = run(replace(spec, generation=replace(spec.generation, max_new_tokens=1)), attempt=2)
    assert "answered already" not in after.attempt(2).log(0).read_text()
    assert len(predictions(after)) == 18
