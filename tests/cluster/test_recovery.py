"""The real engine on the real scheduler while things go wrong: whatever happens, the run ends with exactly the weights
and losses of an undisturbed one, and status says what happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.files import read_lines, read_object
from hpclm.core.layout import StagePaths
from launch.dev_cluster import Cluster
from tests.support.processes import LIMIT_S, hpclm
from tests.support.samples import changed, write
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS, SAVE = 160, 10
# For the test of a hang alone. On a busy machine the engine's imports take longer than 12 s, and count as a hang.
STALL_S = 60


class Shop:
    """One recipe, one undisturbed run of it, and as many disturbed ones as there are tests."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        recipe = changed(
            ("container", None),
            ("text.document", "line"),
            ("stages", [{"name": "pretrain", "task": "pretrain"}]),
            ("model.num_layers", 2),
            ("trainer", {"max_steps": STEPS, "val_check_interval": STEPS}),
            ("checkpoint", {"save_interval_steps": SAVE, "keep_last": 4}),
            ("recovery", {"preflight": False}),
        )
        for key in ("data", "task_templates", "prompt", "generation"):
            del recipe[key]
        self.recipe = write(folder, recipe)
        (folder / "text" / "b.txt").write_text("".join(f"line {n} of a text that repeats itself\n" for n in range(400)))
        self.whole = self.submit()
        self.whole.until_over()
        assert self.whole.state == "completed", self.whole.status

    def submit(self, partition: str = "main", *settings: str) -> Disturbed:
        site = self.folder / f"{partition}.yaml"
        site.write_text(f"scheduler: slurm\npartition: {partition}\n")
        runs = self.folder / f"runs-{time.monotonic_ns()}"
        more = [word for setting in settings for word in ("--set", setting)]
        argv = ["--site", str(site), "--nodes", "2", "--devices-per-node", "1", "--runs-dir", str(runs), *more]
        hpclm("submit", str(self.recipe), *argv)
        return Disturbed(self, runs)


class Disturbed:
    """A run, and what can be done to it. `lost`: a node that it has lost."""

    def __init__(self, shop: Shop, runs: Path) -> None:
        self.shop, self.runs = shop, runs
        self.root = next(path.parent for path in runs.glob("*/run.json"))
        self.stage = StagePaths(self.root / "stages" / "pretrain")
        self.lost = ""
        self.job = (read_object(self.root / "run.json") or {})["submits"][0]["job_ids"]["pretrain"]

    @property
    def status(self) -> dict[str, Any]:
        (run,) = json.loads(hpclm("status", "--json", "--runs-dir", str(self.runs)))["runs"]
        return dict(run["stages"][0])

    @property
    def state(self) -> str:
        return str(self.status["state"])

    @property
    def history(self) -> str:
        return "\n".join(sentence for _, sentence in self.status["history"])

    def saved(self) -> int:
        return int((read_object(self.stage.latest) or {}).get("step", 0))

    def until_saved(self, step: int = SAVE) -> None:
        def reached() -> bool:
            saved = self.saved() >= step
            assert saved or not self.stage.result.exists(), f"it was complete before checkpoint {step}"
            return saved

        wait_until(f"checkpoint {step}", reached, seen=lambda: self.status, pause_s=0.02)

    def until_over(self) -> None:
        def over() -> bool:
            return self.state not in ("pending", "running")

        wait_until("the run's end", over, limit_s=2 * LIMIT_S, seen=lambda: self.status, pause_s=2.0)

    def rank(self, number: int) -> dict[str, Any]:
        """What a rank of the newest attempt has written."""
        attempt = self.stage.latest_attempt()
        assert attempt is not None
        return read_object(attempt.rank(number)) or {}

    def is_the_undisturbed_one(self) -> None:
        whole = self.shop.whole.stage
        self.until_over()
        assert self.state == "completed", self.status
        for path in sorted(whole.checkpoint(STEPS).glob("*.safetensors")):
            assert (self.stage.checkpoint(STEPS) / path.name).read_bytes() == path.read_bytes(), path.name
        assert losses(self.stage) == losses(whole)

    def pause_s(self) -> float:
        """Seconds between the end of the first job and the start of the next."""
        events = list(read_lines(self.stage.events))
        gone = next(event["at"] for event in events if event["event"] == "requeue")
        return float(next(event["at"] for event in events if event["event"] == "start" and event["at"] > gone) - gone)


def losses(stage: StagePaths) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_lines(stage.metrics)]


@pytest.fixture(scope="module")
def shop(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
            patch.delenv(name, raising=False)
        yield Shop(tmp_path_factory.mktemp("recovery"), cluster)


@dataclass(frozen=True)
class Fault:
    """One row of the matrix: what happens to a run, and what its history says afterwards.

    Attributes:
        happens: the disturbance, for as long as it lasts.
        said: phrases of the history, each with its alternatives.
        settings: of the recipe, for this run.
        steps: how far it is saved before it happens.
        attempts: how many attempts it took in its last job; None: it does not matter.
        after: what else must be true then.
    """

    happens: Callable[[Disturbed], AbstractContextManager[object]]
    said: tuple[str, ...]
    partition: str = "main"
    settings: tuple[str, ...] = ()
    steps: int = SAVE
    attempts: int | None = None
    after: Callable[[Disturbed], None] | None = None


@contextlib.contextmanager
def urgent_job(run: Disturbed) -> Iterator[None]:
    """Another user's job that needs every node for a moment."""
    argv = ["sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"]
    job = run.shop.cluster.command(*argv, "--wrap=sleep 1").strip()
    yield
    run.shop.cluster.command("scancel", job, check=False)


@contextlib.contextmanager
def warned_of_the_limit(run: Disturbed) -> Iterator[None]:
    """Slurm's warning may come up to a minute early, and does so for a job of one minute: it is sent once more."""
    run.shop.cluster.command("scancel", "--signal=USR2", f"{run.job}.0", check=False)
    yield


@contextlib.contextmanager
def requeued_by_hand(run: Disturbed) -> Iterator[None]:
    run.shop.cluster.command("scontrol", "requeue", run.job)
    yield


@contextlib.contextmanager
def killed(run: Disturbed, *ranks: int) -> Iterator[None]:
    for rank in ranks:
        os.kill(run.rank(rank)["pid"], signal.SIGKILL)
    yield


@contextlib.contextmanager
def stopped(run: Disturbed) -> Iterator[None]:
    os.kill(run.rank(1)["pid"], signal.SIGSTOP)
    yield


@contextlib.contextmanager
def killed_while_the_controller_restarts(run: Disturbed) -> Iterator[None]:
    """Slurm starts no step then, not even the one that decides what to do."""
    run.shop.cluster.stop_controller()
    try:
        os.kill(run.rank(1)["pid"], signal.SIGKILL)
        wait_until("the end of the ranks", lambda: '"event": "end"' in run.stage.events.read_text())
        time.sleep(10)
    finally:
        run.shop.cluster.start_controller()
    yield


@contextlib.contextmanager
def checkpoint_damaged(run: Disturbed) -> Iterator[None]:
    """The newest one is cut off, its pointer torn, and the ranks killed."""
    pids = [run.rank(number)["pid"] for number in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    newest = run.stage.checkpoint(run.saved())
    shard = next(newest.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    run.stage.latest.write_text('{"checkpoint": "step-0')
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    yield


@contextlib.contextmanager
def node_lost(run: Disturbed) -> Iterator[None]:
    """Its daemon and everything it runs die at once, as when the power fails."""
    node = run.rank(1)["node"]
    run.lost = node
    run.shop.cluster.kill_node(node)
    try:
        yield
    finally:
        run.shop.cluster.revive_node(node)


def starts_again_soon(run: Disturbed) -> None:
    assert run.pause_s() < 60
    assert run.status["job_id"] == run.job, "it stays one job"


def stack_is_kept(run: Disturbed) -> None:
    assert "hpclm/engines/megatron/ranks/training.py" in run.stage.all_attempts()[0].stack(0).read_text()


def damage_is_named(run: Disturbed) -> None:
    assert "not resuming from step-" in run.stage.all_attempts()[1].log(0).read_text()


def runs_elsewhere(run: Disturbed) -> None:
    assert run.rank(1)["node"] != run.lost


PREEMPTED = ("preempted|stop requested; saved", "requeued")
VANISHED = ("rank 1 on", "vanished without an error message", "restarted on the same nodes")
FAULTS = {
    "preempted at once": Fault(
        urgent_job, ("preempted|stop requested; saved", "requeued"), "low", after=starts_again_soon
    ),
    "preempted with time to save": Fault(
        urgent_job, ("preempted|stop requested; saved", "requeued"), "grace", after=starts_again_soon
    ),
    "a partition shorter than the run": Fault(
        warned_of_the_limit, ("requeued",), "short", ("trainer.log_interval_steps=1",)
    ),
    "requeued by hand": Fault(requeued_by_hand, ("requeued by hand or by an administrator",), after=starts_again_soon),
    "a rank killed": Fault(lambda run: killed(run, 1), VANISHED, attempts=2),
    "every rank killed": Fault(
        lambda run: killed(run, 0, 1), ("vanished without an error message", "restarted on the same nodes"), attempts=2
    ),
    "a rank killed while the controller restarts": Fault(
        killed_while_the_controller_restarts, ("vanished without an error message",), attempts=2
    ),
    "a rank that gives no sign any more": Fault(
        stopped,
        ("rank 1 on", "hung, and the other ranks waited for it|did not run at all"),
        settings=(f"recovery.stall_timeout_s={STALL_S}",),
        after=stack_is_kept,
    ),
    "a damaged checkpoint": Fault(checkpoint_damaged, ("vanished",), steps=2 * SAVE, after=damage_is_named),
    "a node lost": Fault(node_lost, ("requeued",), after=runs_elsewhere),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_run_ends_as_if_nothing_had_happened(shop: Shop, name: str) -> None:
    fault = FAULTS[name]
    run = shop.submit(fault.partition, *fault.settings)
    run.until_saved(fault.steps)
    with fault.happens(run):
        run.is_the_undisturbed_one()
    for phrase in fault.said:
        assert any(words in run.history for words in phrase.split("|")), run.history
    assert fault.attempts in (None, run.status["attempts"])
    if fault.after is not None:
        fault.after(run)
