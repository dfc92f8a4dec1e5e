"""The local executor's own process: runs a submit's stages in order on this machine, independent of the shell.

    python -m hpclm.schedulers.local.supervisor <run>/local/<submit>

It reads `jobs.json`, writes `state.json`, and obeys `cancel` (a file) and SIGTERM. It starts every rank in a separate
session with HPCLM_RANK, HPCLM_WORLD_SIZE, HPCLM_LOCAL_RANK, HPCLM_NODE_RANK and HPCLM_RESTART, warns them by SIGUSR2
before the time limit, ends the others after one has failed, and restarts all of them if
`recovery.restart_decision` says so.
Standard library only; run from the payload.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hpclm.core.exit_codes import ExitCode
from hpclm.core.failures import Action
from hpclm.core.files import append_line, read_json, write_json
from hpclm.core.layout import LocalPaths, StagePaths
from hpclm.core.processes import identity
from hpclm.core.records import from_dict, to_dict
from hpclm.core.secrets import values
from hpclm.core.stage_result import is_complete
from hpclm.core.states import StageState
from hpclm.core.storage import when_there_is_room
from hpclm.recovery.restart_decision import Decision, decide, write_decision
from hpclm.schedulers.local.local_records import LocalJobs, LocalStage, StageProgress, SupervisorState

_POLL_S = 0.1
_HEARTBEAT_S = 5.0
_STOPPED = int(ExitCode.STOPPED)


class Stage:
    """One attempt at a stage: its ranks while they run. `spent_s`: what earlier attempts took of the time limit."""

    def __init__(self, job: LocalStage, kill_wait_s: float, grace_s: float, restart: int, spent_s: float) -> None:
        self.job, self.restart = job, restart
        self.limit_s = max(0.0, job.time_limit_s - spent_s)
        self.paths = StagePaths(Path(job.stage_dir))
        self.attempt = self.paths.attempt(job.submit, restart)
        self.kill_wait_s, self.grace_s = kill_wait_s, grace_s
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ends_why: str | None = None  # cancelled, timeout or failed: the first cause
        self.kill_at: float | None = None
        self.term_at: float | None = None
        self.warned = False

    def start(self) -> None:
        self.attempt.ranks.mkdir(parents=True, exist_ok=True)
        self.attempt.logs.mkdir(parents=True, exist_ok=True)
        self.tell("start", socket.gethostname())
        common = {**os.environ, **self.job.environment, **values(self.job.secrets)}
        for rank in range(self.job.world_size):
            with self.attempt.log(rank).open("ab") as log:
                self.processes.append(
                    subprocess.Popen(
                        self.job.command,
                        cwd=self.paths.root,
                        env={**common, **rank_environment(self.job, rank, self.restart)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=_die_with_parent,
                    )
                )
        self.started = time.monotonic()

    def tell(self, event: str, detail: str) -> None:
        """One event of the stage's attempt history."""
        record = {"at": time.time(), "job": "local", "attempt": self.attempt.name, "event": event, "detail": detail}
        with contextlib.suppress(OSError):  # a full disk: what was done counts more
            append_line(self.paths.events, record)

    def step(self, cancelled: bool) -> bool:
        """Check once; returns whether every rank has ended."""
        now = time.monotonic()
        codes = [process.poll() for process in self.processes]
        if all(code is not None for code in codes):
            return True
        elapsed = now - self.started
        if cancelled:
            self._end("cancelled", now)
        if not self.warned and elapsed >= self.limit_s - self.job.warning_s:
            self.warned = True
            self._signal(signal.SIGUSR2)
        if elapsed >= self.limit_s:
            self._end("timeout", now)
        if any(code not in (None, 0) for code in codes):
            # The other ranks notice a lost peer by themselves and record it; give them time for that.
            self._end("failed", now + self.grace_s)
        if self.term_at is not None and now >= self.term_at:
            self._signal(signal.SIGTERM)
            self.term_at, self.kill_at = None, now + self.kill_wait_s
        if self.kill_at is not None and now >= self.kill_at:
            self._signal(signal.SIGKILL)
            self.kill_at = None
        return False

    def _end(self, why: str, term_at: float) -> None:
        """Record the first cause, and ask the ranks to stop at `term_at`, or earlier if that was already planned."""
        if self.ends_why is None:
            self.ends_why, self.term_at = why, term_at
        elif self.term_at is not None:
            self.term_at = min(self.term_at, term_at)

    def _signal(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    # To the process group when it must die, helpers included; only to the rank when it should save: a
                    # helper process without a handler would die of the warning and break the rank's save.
                    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)

    def kill(self) -> None:
        """Kill whatever is left of every rank's process group."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def outcome(self) -> tuple[StageState, str]:
        """State and reason once every rank has ended."""
        codes = [process.returncode for process in self.processes]
        if is_complete(self.paths):
            return StageState.COMPLETED, ""
        if self.ends_why == "timeout" or (self.warned and _STOPPED in codes):
            return StageState.TIMEOUT, f"the time limit of {self.job.time_limit_s / 60:g} min was reached"
        if self.ends_why == "cancelled":
            return StageState.CANCELLED, "cancelled by the user"
        if not any(codes):
            return StageState.FAILED, "every rank ended without an error, but none wrote result.json"
        if set(codes) <= {0, _STOPPED}:
            return StageState.CANCELLED, "a signal from outside hpclm stopped the ranks"
        rank, code = next((rank, code) for rank, code in enumerate(codes) if code not in (0, _STOPPED))
        return StageState.FAILED, f"rank {rank} {_how(code)}"


class Supervisor:
    """All stages of one submit, one after another."""

    def __init__(self, paths: LocalPaths) -> None:
        self.paths = paths
        self.spec = from_dict(LocalJobs, read_json(paths.jobs))
        self.cancelled = False
        own = identity(os.getpid())
        stages = {job.stage: StageProgress() for job in self.spec.stages}
        self.state = SupervisorState(own.pid, own.boot_id, own.start_ticks, socket.gethostname(), stages=stages)

    def run(self) -> None:
        self._write()
        for job in self.spec.stages:
            self.state.stages[job.stage] = self._run_stage(job)
            self._write()
        self.state.ended_at = time.time()
        with contextlib.suppress(FileNotFoundError):  # every stage is over, so that the run may have been moved
            when_there_is_room(self._save, self.paths.state)

    def _run_stage(self, job: LocalStage) -> StageProgress:
        if is_complete(StagePaths(Path(job.stage_dir))):
            return StageProgress(StageState.COMPLETED)
        lost = [name for name in job.depends_on if self.state.stages[name].state != StageState.COMPLETED]
        if self._is_cancelled():
            return StageProgress(StageState.CANCELLED, "cancelled by the user")
        if lost:
            return StageProgress(StageState.SKIPPED, f"stage {lost[0]} did not complete")
        started_at = time.time()
        self.state.stages[job.stage] = StageProgress(StageState.RUNNING, started_at=started_at)
        self._write()
        began = time.monotonic()
        for restart in itertools.count():
            stage = Stage(job, self.spec.kill_wait_s, self.spec.grace_s, restart, time.monotonic() - began)
            result = self._run_attempt(stage)
            if result.state != StageState.FAILED or self._is_cancelled() or not self._goes_on(stage):
                break
        return dataclasses.replace(result, started_at=started_at)

    def _goes_on(self, stage: Stage) -> bool:
        """Decide whether a failed attempt is followed by another, and record why."""
        decision: Decision = decide(stage.paths, stage.attempt, None, ())
        if decision.action is Action.REQUEUE:  # there is no other node
            decision = dataclasses.replace(decision, action=Action.AGAIN)
        with contextlib.suppress(OSError):
            write_decision(stage.paths, stage.attempt, decision)
        again = decision.action is Action.AGAIN
        stage.tell("again" if again else "stop", "decision")
        print(f"{stage.job.stage}: {decision.reason}; {decision.action}", flush=True)
        return again

    def _run_attempt(self, stage: Stage) -> StageProgress:
        job = stage.job
        print(f"{job.stage}: starting {job.world_size} ranks", flush=True)
        try:
            stage.start()
            self._watch(stage)
            state, reason = stage.outcome()
        except OSError as error:
            state, reason = StageState.FAILED, f"a rank could not be started: {error}"
        finally:
            stage.kill()
        stage.tell("end", "complete" if state is StageState.COMPLETED else state)
        print(f"{job.stage}: {state} {reason}", flush=True)
        codes = [process.returncode for process in stage.processes]
        return StageProgress(state, reason, ended_at=time.time(), exit_codes=codes)

    def _watch(self, stage: Stage) -> None:
        beat = time.monotonic()
        while not stage.step(self._is_cancelled()):
            time.sleep(_POLL_S)
            if time.monotonic() - beat >= _HEARTBEAT_S:
                beat = time.monotonic()
                self._write()

    def _is_cancelled(self) -> bool:
        self.cancelled = self.cancelled or self.paths.cancel.exists()
        return self.cancelled

    def _write(self) -> None:
        """A full disk ends no rank: the next write, or the last one, which waits, says what has happened since."""
        with contextlib.suppress(OSError):
            self._save()

    def _save(self) -> None:
        self.state.updated_at = time.time()
        write_json(self.paths.state, to_dict(self.state), parents=False)


def rank_environment(job: LocalStage, rank: int, restart: int = 0) -> dict[str, str]:
    """Variables that tell a rank its place. Nodes are simulated: they differ only in HPCLM_NODE_RANK."""
    per_node = job.tasks_per_node
    return {
        "HPCLM_RANK": str(rank),
        "HPCLM_WORLD_SIZE": str(job.world_size),
        "HPCLM_LOCAL_RANK": str(rank % per_node),
        "HPCLM_NODE_RANK": str(rank // per_node),
        "HPCLM_RESTART": str(restart),
    }


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def _die_with_parent() -> None:
    """A rank is stopped if its supervisor dies; without it nothing would enforce the time limit."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _detach(work: Callable[[], None]) -> None:
    """Run `work` in a daemon process (a child of init), so that it is neither a zombie nor a job of a terminal."""
    if os.fork() == 0:
        os.setsid()
        work()


def main(folder: str) -> None:
    paths = LocalPaths(Path(folder))

    def work() -> None:
        supervisor = Supervisor(paths)

        def on_term(*_: object) -> None:
            supervisor.cancelled = True

        signal.signal(signal.SIGTERM, on_term)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        supervisor.run()

    _detach(work)


if __name__ == "__main__":
    main(sys.argv[1])
