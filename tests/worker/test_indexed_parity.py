"""Pre-training on indexed data sets: the same curve at every split, and after an interruption at another one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core import spec as plan
from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.files import read_lines
from hpclm.core.layout import StagePaths
from hpclm.data.corpus.tokenizing import tokenize
from hpclm.data.tokenizers import Tokenizer
from tests.support import engine_harness
from tests.support.engine_harness import Split, losses, run, stage_spec
from tests.worker.test_parity import ALONE, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of every other line of the harness's text, and the tokenizer."""
    folder = tmp_path_factory.mktemp("indexed")
    engine_harness.write_data(folder)
    lines = [line for path in sorted((folder / "text").iterdir()) for line in path.read_text().splitlines()]
    Tokenizer.train(lines, engine_harness.VOCAB).save(folder / "tokenizer")
    for number, name in enumerate(("even", "odd")):
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[number::2]))
        spec = CorpusSpec([str(rows)], tokenizer_of(folder), str(folder / name), append_eod=True)
        tokenize(spec, 1, lambda progress: None)
    return folder


def tokenizer_of(data: Path) -> plan.TokenizerSpec:
    return plan.TokenizerSpec("json", tokenizer_file=str(data / "tokenizer" / "tokenizer.json"))


def stage(data: Path, name: str, split: Split, steps: int = 12, **changes: Any) -> plan.StageSpec:
    """Pre-training on a blend of both."""
    source = plan.IndexedData(
        [str(data / f"{one}_text_document") for one in ("even", "odd")],
        [3.0, 1.0],
        split=[9.0, 1.0, 0.0],
        seq_length=24,
        **changes,
    )
    spec = stage_spec(data / name, data, "pretrain", split, steps=steps, text=None, indexed=source)
    return replace(spec, tokenizer=tokenizer_of(data), trainer=replace(spec.trainer, val_batches=1))


RESETS = {"reset_positions": True, "reset_attention": True, "mask_end_loss": True}


@pytest.mark.parametrize("changes", [{}, RESETS], ids=["plain", "documents apart"])
@pytest.mark.parametrize("split", [Split(2), Split(1, 2), Split(1, 1, 2), Split(2, sequence=True)], ids=str)
def test_every_split_gives_the_same_curve(data: Path, split: Split, changes: Any) -> None:
    def curve(where: Split) -> StagePaths:
        paths = StagePaths(data / f"{where}-{len(changes)}")
        return paths if paths.result.exists() else run(stage(data, paths.root.name, where, **changes))

    ours, alone = curve(split), curve(ALONE)
    same(losses(ours), losses(alone))
    same(losses(ours, "validation"), losses(alone, "validation"))


def test_documents_that_are_kept_apart_train_another_model(data: Path) -> None:
    apart = run(stage(data, "apart", ALONE, reset_attention=True))
    whole = run(stage(data, "whole", ALONE))
    assert losses(apart)[0] != pytest.approx(losses(whole)[0], rel=1e-6)


def test_an_interrupted_run_goes_on_with_the_same_samples_at_another_split(data: Path) -> None:
    """In the middle of an epoch, from a checkpoint of two replicas to two tensor ranks."""
    whole = run(stage(data, "all", ALONE, 20))
    spec = stage(data, "moved", Split(1, 1, 2), 20)
    run(replace(spec, checkpoint=plan.CheckpointSpec(save_interval_steps=7, keep_last=10)))
    paths = StagePaths(data / "moved")
    paths.result.unlink()
    for step in (10, 14, 20):
        shutil.rmtree(paths.checkpoints / f"step-{step:08d}")
    paths.latest.write_text(json.dumps({"checkpoint": "step-00000007"}))
    moved = run(stage(data, "moved", Split(2), 20), attempt=2)
    same(losses(moved), losses(whole))


def test_a_batch_that_grows_takes_the_same_samples_at_every_split_and_after_an_interruption(data: Path) -> None:
    """The rate follows the samples, as Megatron-LM's does."""

    def spec(name: str, split: Split, steps: int | None = None) -> plan.StageSpec:
        made = stage(data, name, split)
        batch = plan.BatchSpec(8, 2, 4 // split.data, plan.RampupSpec(4, 4, 20))
        length = batch.schedule.steps(76)
        optim = replace(made.optim, warmup_steps=16, schedule="linear", from_zero=True)
        trainer = replace(made.trainer, max_steps=steps or length, train_samples=76)
        return replace(made, batch=batch, optim=optim, trainer=trainer)

    whole = run(spec("grows", ALONE))
    assert len(losses(whole)) == 5 + 7
    same(losses(run(spec("grows-dp", Split(1, 1, 2)))), losses(whole))
    rates = [row["lr"] for row in read_lines(whole.metrics) if row["kind"] == "train"]
    consumed = [0, 4, 8, 12, 16, 20, 28]
    expected = [min(1.0, one / 16) if one < 16 else (76 - one) / (76 - 16) for one in consumed]
    assert [rate / 1e-2 for rate in rates[:7]] == pytest.approx(expected)
    halved = spec("grows-halved", Split(2), 3)
    run(replace(halved, checkpoint=plan.CheckpointSpec(save_interval_steps=3)))
    StagePaths(data / "grows-halved").result.unlink()
    same(losses(run(spec("grows-halved", ALONE), attempt=2)), losses(whole))
