"""The real engine on the real scheduler while things go wrong: whatever happens, the run ends with exactly the weights
and losses of an undisturbed one, and status says what happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
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

STEPS, SAVE = 240, 10
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
    """A run, and what can be done to it."""

    def __init__(self, shop: Shop, runs: Path) -> None:
        self.shop, self.runs = shop, runs
        self.root = next(path.parent for path in runs.glob("*/run.json"))
        self.stage = StagePaths(self.root / "stages" / "pretrain")
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

        wait_until("the run's end", over, limit_s=2 * LIMIT_S, seen=lambda: self.status, pause_s=0.5)

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


@contextlib.contextmanager
def urgent_job(cluster: Cluster) -> Iterator[None]:
    """Another user's job that needs every node for a moment."""
    argv = ["sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"]
    job = cluster.command(*argv, "--wrap=sleep 1").strip()
    yield
    cluster.command("scancel", job, check=False)


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_preemption_with_and_without_time_to_save(shop: Shop, partition: str) -> None:
    run = shop.submit(partition)
    run.until_saved()
    with urgent_job(shop.cluster):
        run.is_the_undisturbed_one()
    assert "preempted" in run.history or "stop requested; saved" in run.history
    assert "requeued" in run.history
    assert run.status["job_id"] == run.job, "it stays one job"
    assert run.pause_s() < 60


def test_a_partition_shorter_than_the_run(shop: Shop) -> None:
    run = shop.submit("short", "trainer.log_interval_steps=1")
    run.until_saved()
    # Slurm's warning may come up to a minute early, and does so for a job of one minute: send it once more for sure
    run.shop.cluster.command("scancel", "--signal=USR2", f"{run.job}.0", check=False)
    run.is_the_undisturbed_one()
    assert "requeued" in run.history


def test_a_requeue_by_hand(shop: Shop) -> None:
    run = shop.submit()
    run.until_saved()
    run.shop.cluster.command("scontrol", "requeue", run.job)
    run.is_the_undisturbed_one()
    assert "requeued by hand or by an administrator" in run.history
    assert run.pause_s() < 60


def test_a_killed_rank(shop: Shop) -> None:
    run = shop.submit()
    run.until_saved()
    os.kill(run.rank(1)["pid"], signal.SIGKILL)
    run.is_the_undisturbed_one()
    assert "rank 1 on" in run.history
    assert "vanished without an error message" in run.history
    assert "restarted on the same nodes" in run.history
    assert run.status["attempts"] == 2


def test_a_rank_killed_while_the_controller_restarts(shop: Shop) -> None:
    """Slurm starts no step then, not even the one that decides what to do."""
    run = shop.submit()
    run.until_saved()
    shop.cluster.stop_controller()
    try:
        os.kill(run.rank(1)["pid"], signal.SIGKILL)
        wait_until("the end of the ranks", lambda: '"event": "end"' in run.stage.events.read_text())
        time.sleep(10)
    finally:
        shop.cluster.start_controller()
    run.is_the_undisturbed_one()
    assert "vanished without an error message" in run.history
    assert run.status["attempts"] == 2


def test_a_rank_that_gives_no_sign_any_more(shop: Shop) -> None:
    run = shop.submit("main", f"recovery.stall_timeout_s={STALL_S}")
    run.until_saved()
    os.kill(run.rank(1)["pid"], signal.SIGSTOP)
    run.is_the_undisturbed_one()
    assert "rank 1 on" in run.history
    assert "hung, and the other ranks waited for it" in run.history or "did not run at all" in run.history
    first = run.stage.all_attempts()[0]
    assert "hpclm/engines/megatron/ranks/training.py" in first.stack(0).read_text()


def test_a_damaged_checkpoint_is_passed_over(shop: Shop) -> None:
    run = shop.submit()
    run.until_saved(2 * SAVE)
    pids = [run.rank(number)["pid"] for number in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    newest = run.stage.checkpoint(run.saved())
    shard = next(newest.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    run.is_the_undisturbed_one()
    log = run.stage.all_attempts()[1].log(0).read_text()
    assert f"not resuming from {newest.name}" in log


def test_a_lost_node(shop: Shop) -> None:
    """Its daemon and everything it ran die at once, as when the power fails."""
    run = shop.submit()
    run.until_saved()
    node = run.rank(1)["node"]
    shop.cluster.kill_node(node)
    try:
        run.is_the_undisturbed_one()
    finally:
        shop.cluster.revive_node(node)
    assert run.rank(1)["node"] != node
    assert "requeued" in run.history
