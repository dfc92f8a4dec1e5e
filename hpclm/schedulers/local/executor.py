"""The local executor: passes a submit's stages to a supervisor process that outlives the shell."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hpclm.core.errors import SchedulerError
from hpclm.core.files import write_json, write_text
from hpclm.core.layout import LocalPaths, RunPaths, StagePaths
from hpclm.core.processes import ProcessIdentity, is_alive
from hpclm.core.records import read_record, to_dict
from hpclm.core.secrets import shell_lines
from hpclm.core.site import Site
from hpclm.core.states import StageState, stage_state
from hpclm.core.sweep_layout import SweepPaths
from hpclm.schedulers.commands import clean_environment
from hpclm.schedulers.jobs import JobInfo, StageJob
from hpclm.schedulers.local.local_records import LocalJobs, LocalStage, Queue, QueueMember, SupervisorState

_START_S = 20.0
_SILENT_S = 60.0  # a supervisor on another machine writes its state every five seconds
KILL_WAIT_S = 30.0
GRACE_S = 15.0


def describe(job: StageJob, site: Site, environment: dict[str, str] | None = None) -> LocalStage:
    """One stage as the supervisor runs it. Pure."""
    own = {**job.environment, **site.environment, **job.launch.environment}
    inherited = own.get("PYTHONPATH") or (os.environ if environment is None else environment).get("PYTHONPATH", "")
    python_path = job.payload if job.in_container or not inherited else f"{job.payload}:{inherited}"
    return LocalStage(
        stage=job.stage,
        stage_dir=job.stage_dir,
        submit=job.submit,
        depends_on=list(job.depends_on),
        world_size=job.world_size,
        tasks_per_node=job.tasks_per_node,
        time_limit_s=job.total_time_min * 60.0,
        warning_s=float(job.warning_s),
        command=[*job.launch.prefix, *job.python, "-u", "-m", "hpclm.worker", job.stage_dir, job.attempt],
        environment={**own, "PYTHONPATH": python_path, "PYTHONNOUSERSITE": "1"},
        secrets=site.secrets,
    )


def render(job: StageJob, site: Site) -> str:
    """The same as a readable shell script: what the supervisor starts, rank by rank."""
    description = describe(job, site, {})
    lines = [
        "#!/bin/bash",
        "# What the local supervisor runs for this stage; it also enforces the time limit and writes the logs.",
        "",
        f"cd {shlex.quote(description.stage_dir)} || exit 1",
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(description.environment.items())),
        *shell_lines(site.secrets),
        "",
        f"export HPCLM_WORLD_SIZE={job.world_size}",
        f"for rank in $(seq 0 {job.world_size - 1}); do",
        f"  HPCLM_RANK=$rank HPCLM_LOCAL_RANK=$((rank % {job.tasks_per_node})) "
        f"HPCLM_NODE_RANK=$((rank / {job.tasks_per_node})) \\",
        f"    {shlex.join(description.command)} &",
        "done",
        "wait",
        "",
    ]
    return "\n".join(lines)


def submit(paths: LocalPaths, jobs: Sequence[StageJob], site: Site, payload: Path) -> None:
    """Start the supervisor; returns once it runs. Raises SchedulerError with its last output if it does not."""
    write_jobs(paths, jobs, site)
    if not (_start("hpclm.schedulers.local.supervisor", paths.root, paths.log, payload) and _appears(paths.state)):
        said = paths.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise SchedulerError(f"the local supervisor did not start: {said[0] if said else 'it printed nothing'}")


def _start(module: str, folder: Path, log: Path, payload: Path) -> bool:
    """Start one of hpclm's modules in a separate session, with the run's code. Returns whether it went to the
    background."""
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", module, str(folder)],
            cwd=folder,
            env=clean_environment() | {"PYTHONPATH": str(payload)},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=_START_S,
            check=False,
        )
    return done.returncode == 0


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _START_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def write_jobs(paths: LocalPaths, jobs: Sequence[StageJob], site: Site) -> None:
    """The files a supervisor needs to start."""
    for job in jobs:
        write_text(StagePaths(Path(job.stage_dir)).script, render(job, site))
    written = to_dict(LocalJobs([describe(job, site) for job in jobs], KILL_WAIT_S, GRACE_S))
    for stage in written["stages"]:
        if not stage["secrets"]:
            del stage["secrets"]  # a run's own code reads this, and that of an earlier version does not know the key
    write_json(paths.jobs, written)


def submit_queue(paths: SweepPaths, members: list[QueueMember], max_running: int) -> None:
    """Start the process that runs a sweep's members one after another; returns once it is running."""
    write_json(paths.queue, to_dict(Queue(members, max_running)))
    payload = Path(members[0].payload)
    started = _start("hpclm.schedulers.local.sweep_queue", paths.root, paths.queue_log, payload)
    if not (started and _appears(paths.queue_state)):
        raise SchedulerError(f"the sweep's queue did not start; see {paths.queue_log}")


def _queued(run: RunPaths, paths: LocalPaths) -> dict[str, JobInfo]:
    """Stages of a sweep member that has not been started yet."""
    jobs = read_record(LocalJobs, paths.jobs)
    queue = read_record(ProcessIdentity, SweepPaths(run.root.parent).queue_state)
    if jobs is None or queue is None:
        return {}
    state, reason = StageState.PENDING, "waits for its turn in the sweep"
    if paths.cancel.exists():
        state, reason = StageState.CANCELLED, "cancelled by the user"
    elif not is_alive(queue):
        state = StageState.SKIPPED
        reason = "the sweep's queue process was lost before its turn (machine restarted, or it was killed)"
    return {job.stage: JobInfo("", state, reason, reason_is_final=True) for job in jobs.stages}


def look(run: RunPaths, submit: int) -> dict[str, JobInfo]:
    """Every stage of one submit as its supervisor last wrote it; empty before it has written anything.

    If the supervisor was lost, running and pending stages are reported as failed.
    """
    paths = run.local(submit)
    state = read_record(SupervisorState, paths.state)
    if state is None:
        return _queued(run, paths)
    gone = state.ended_at is None and not _lives(state)
    found = {}
    for name, stage in state.stages.items():
        now, reason = stage_state(stage.state), stage.reason
        if gone and not now.is_over:
            now = StageState.FAILED if now is StageState.RUNNING else StageState.SKIPPED
            reason = "the local supervisor was lost (machine restarted, or it was killed)"
        found[name] = JobInfo(
            job_id=str(state.pid),
            state=now,
            reason=reason,
            started_at=stage.started_at,
            ended_at=stage.ended_at,
            nodes=state.host,
            reason_is_final=True,
        )
    return found


def cancel(paths: LocalPaths) -> bool:
    """Ask the supervisor to stop its stages; returns whether there was one."""
    state = read_record(SupervisorState, paths.state)
    if state is None and paths.jobs.exists():
        paths.cancel.touch()  # before it is started by the sweep
        return True
    if state is None or state.ended_at is not None or not _lives(state):
        return False
    paths.cancel.touch()
    if state.host == socket.gethostname() and is_alive(state):
        os.kill(state.pid, signal.SIGTERM)
    return True


def _lives(state: SupervisorState) -> bool:
    if state.host == socket.gethostname():
        return is_alive(state)
    return time.time() - state.updated_at < _SILENT_S
