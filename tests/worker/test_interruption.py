"""Nothing is lost: however a run is stopped, after a resume it ends with the weights of an uninterrupted run."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.exit_codes import ExitCode
from hpclm.core.files import read_object
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.layout import StagePaths
from hpclm.core.spec import StageSpec
from tests.support.engine_harness import Ranks, Split, checkpoint_bytes, losses, run, stage_spec, write_data
from tests.support.hf_harness import hf_spec, rows_in
from tests.support.hf_models import save_model
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

STEPS, SAVE = 40, 5
# Of engine hf; every other task is engine megatron's.
TUNED: dict[str, dict[str, Any]] = {
    "full-fsdp": {"strategy": "fsdp"},
    "full-zero3": {"strategy": "zero3"},
    "lora-ddp": {"method": "lora"},
}
# Checkpoints are written while training goes on, the optimizer's state is divided over the ranks.
ASYNCHRONOUS = "pretrain-asynchronous"


class Shop:
    """One base, one undisturbed run a task, and as many disturbed ones as the tests want."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        write_data(self.data)
        self.base = run(stage_spec(folder / "base", self.data, "pretrain", steps=20))
        self.whole = functools.cache(lambda task: run(self.spec(f"whole-{task}", task)))
        self.model = functools.cache(lambda: (save_model(folder / "llama"), rows_in(folder / "rows")))

    def spec(self, name: str, task: str) -> StageSpec | FineTuneStageSpec:
        if task in TUNED:
            how = {"ranks": 2, "steps": STEPS, "save": SAVE, "schedule": "constant", **TUNED[task]}
            return hf_spec(self.folder / name, *self.model(), **how)
        if task == ASYNCHRONOUS:
            spec = stage_spec(
                self.folder / name, self.data, "pretrain", Split(1, 1, 2, zero=True), steps=STEPS, save=SAVE
            )
            return replace(spec, checkpoint=replace(spec.checkpoint, asynchronous=True))
        base = None if task == "pretrain" else str(self.base.checkpoints)
        split = Split(1, 1, 2) if task == "pretrain" else Split(2)
        return stage_spec(self.folder / name, self.data, task, split, base=base, steps=STEPS, save=SAVE)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("interruption"))


def until(condition: Callable[[], bool], what: str, ranks: Ranks) -> None:
    """A run's step takes a few milliseconds, and the next thing is to happen soon after."""
    wait_until(what, condition, seen=lambda: ranks.log()[-2000:], pause_s=0.002)


def same_end(shop: Shop, task: str, paths: StagePaths) -> None:
    whole = shop.whole(task)
    assert checkpoint_bytes(paths, STEPS) == checkpoint_bytes(whole, STEPS)
    assert losses(paths) == losses(whole)
    assert losses(paths, "validation") == losses(whole, "validation")


@pytest.mark.parametrize(
    ("task", "step"),
    [("pretrain", 7), ("p-tuning", 1), ("p-tuning", 23), (ASYNCHRONOUS, 11), *((task, 8) for task in TUNED)],
)
def test_a_killed_rank_costs_nothing(shop: Shop, task: str, step: int) -> None:
    spec = shop.spec(f"killed-{task}-{step}", task)
    ranks = Ranks(spec)
    until(lambda: len(losses(ranks.paths)) >= step, f"step {step}", ranks)
    ranks.processes[1].kill()
    assert ranks.wait() == [ExitCode.PEER_LOST, -signal.SIGKILL]
    # the rank that was left says that a peer was lost; the killed one said nothing after "running"
    assert ranks.record(0)["kind"] == "peer-lost"
    assert ranks.record(1)["state"] == "running"
    assert not ranks.paths.result.exists()
    same_end(shop, task, run(spec, attempt=2))


@pytest.mark.parametrize("task", ["pretrain", ASYNCHRONOUS, *TUNED])
def test_a_kill_in_the_middle_of_a_save_leaves_no_half_checkpoint(shop: Shop, task: str) -> None:
    spec = shop.spec(f"killed-saving-{task}", task)
    ranks = Ranks(spec)
    until(lambda: any(ranks.paths.checkpoints.glob("*.partial")), "a save", ranks)
    for process in ranks.processes:
        process.kill()
    ranks.wait()
    same_end(shop, task, run(spec, attempt=2))


@pytest.mark.parametrize(
    ("number", "task"),
    [
        (signal.SIGTERM, "p-tuning"),
        (signal.SIGUSR2, "p-tuning"),
        (signal.SIGTERM, ASYNCHRONOUS),
        *((signal.SIGTERM, task) for task in TUNED),
    ],
)
def test_a_signal_to_one_rank_stops_all_after_saving(shop: Shop, number: signal.Signals, task: str) -> None:
    spec = shop.spec(f"stopped-{number.name}-{task}", task)
    ranks = Ranks(spec)
    until(lambda: len(losses(ranks.paths)) >= 3, "step 3", ranks)
    ranks.processes[1].send_signal(number)
    assert ranks.wait() == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert [ranks.record(rank)["state"] for rank in (0, 1)] == ["stopped", "stopped"]
    latest = read_object(ranks.paths.latest)
    assert latest is not None
    assert latest["step"] == len(losses(ranks.paths))
    same_end(shop, task, run(spec, attempt=2))


@pytest.mark.parametrize("task", ["p-tuning", "full-zero3"])
@pytest.mark.parametrize("harm", ["truncated", "flipped", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(shop: Shop, harm: str, task: str) -> None:
    spec = shop.spec(f"damaged-{harm.replace(' ', '-')}-{task}", task)
    run(replace(spec, trainer=replace(spec.trainer, max_steps=20)))
    paths = StagePaths(Path(spec.stage_dir))
    paths.result.unlink()
    newest = paths.checkpoint(20)
    shard = next(newest.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    if harm == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        content[-1] ^= 1
        shard.write_bytes(content)
    else:
        (newest / "manifest.json").unlink()
    again = Ranks(spec, attempt=2)
    assert again.wait() == [0, 0]
    assert "resumed from step-00000015" in again.log(0)
    if harm != "no manifest":
        assert "not resuming from step-00000020" in again.log(0)
    same_end(shop, task, paths)
