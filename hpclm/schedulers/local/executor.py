"""The local executor: hands a submit's stages to a supervisor process that outlives the shell."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hpclm.core.errors import SchedulerError
from hpclm.core.files import read_object, write_json, write_text
from hpclm.core.layout import LocalPaths
from hpclm.core.processes import is_alive
from hpclm.core.site import Site
from hpclm.schedulers.jobs import JobInfo, StageJob
from hpclm.schedulers.slurm.client import clean_environment

_START_S = 20.0
_SILENT_S = 60.0  # a supervisor on another machine writes every five seconds
KILL_WAIT_S = 30.0
GRACE_S = 15.0


def describe(job: StageJob, site: Site, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What the supervisor is told of one stage, as JSON-ready containers. Pure."""
    own = {**job.environment, **site.environment, **job.launch.environment}
    inherited = own.get("PYTHONPATH") or (os.environ if environment is None else environment).get("PYTHONPATH", "")
    python_path = job.payload if job.in_container or not inherited else f"{job.payload}:{inherited}"
    return {
        "stage": job.stage,
        "stage_dir": job.stage_dir,
        "submit": job.submit,
        "depends_on": list(job.depends_on),
        "world_size": job.world_size,
        "tasks_per_node": job.tasks_per_node,
        "time_limit_s": job.total_time_min * 60.0,
        "warning_s": float(job.warning_s),
        "command": [*job.launch.prefix, *job.python, "-u", "-m", "hpclm.worker", job.stage_dir, job.attempt],
        "environment": {
            **own,
            "PYTHONPATH": python_path,
            "PYTHONNOUSERSITE": "1",
        },
    }


def render(job: StageJob, site: Site) -> str:
    """The same as a shell script, for people: what the supervisor starts, rank by rank."""
    told = describe(job, site, {})
    lines = [
        "#!/bin/bash",
        "# What the local supervisor starts for this stage; it also keeps the time limit and the logs.",
        "",
        f"cd {shlex.quote(told['stage_dir'])} || exit 1",
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(told["environment"].items())),
        "",
        f"export HPCLM_WORLD_SIZE={job.world_size}",
        f"for rank in $(seq 0 {job.world_size - 1}); do",
        f"  HPCLM_RANK=$rank HPCLM_LOCAL_RANK=$((rank % {job.tasks_per_node})) "
        f"HPCLM_NODE_RANK=$((rank / {job.tasks_per_node})) \\",
        f"    {shlex.join(told['command'])} &",
        "done",
        "wait",
        "",
    ]
    return "\n".join(lines)


def submit(paths: LocalPaths, jobs: list[StageJob], site: Site, payload: Path) -> None:
    """Start the supervisor; returns once it runs. Raises SchedulerError with its last words when it does not."""
    write_jobs(paths, jobs, site)
    environment = clean_environment() | {"PYTHONPATH": str(payload)}
    with paths.log.open("ab") as log:
        started = subprocess.run(
            [sys.executable, "-m", "hpclm.schedulers.local.supervisor", str(paths.root)],
            cwd=paths.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=_START_S,
            check=False,
        )
    deadline = time.monotonic() + _START_S
    while started.returncode == 0 and time.monotonic() < deadline:
        if paths.state.exists():
            return
        time.sleep(0.01)
    words = paths.log.read_text(errors="replace").strip().splitlines()[-1:]
    raise SchedulerError(f"the local supervisor did not start: {words[0] if words else 'it left no word'}")


def write_jobs(paths: LocalPaths, jobs: list[StageJob], site: Site) -> None:
    """What a supervisor needs to begin."""
    for job in jobs:
        write_text(Path(job.stage_dir) / "job.sh", render(job, site))
    stages = [describe(job, site) for job in jobs]
    write_json(paths.jobs, {"stages": stages, "kill_wait_s": KILL_WAIT_S, "grace_s": GRACE_S})


def submit_queue(root: Path, members: list[dict[str, str]], max_running: int) -> None:
    """Start the process that runs a sweep's members one after the other; returns once it runs."""
    write_json(root / "queue.json", {"members": members, "max_running": max_running})
    with (root / "queue.log").open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "hpclm.schedulers.local.sweep_queue", str(root)],
            cwd=root,
            env=clean_environment() | {"PYTHONPATH": members[0]["payload"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            timeout=_START_S,
            check=True,
        )
    deadline = time.monotonic() + _START_S
    while not (root / "queue-state.json").exists():
        if time.monotonic() > deadline:
            raise SchedulerError(f"the sweep's queue did not start; see {root / 'queue.log'}")
        time.sleep(0.01)


def _queued(paths: LocalPaths) -> dict[str, JobInfo]:
    """Stages of a member of a sweep whose turn has not come."""
    jobs, queue = read_object(paths.jobs), read_object(paths.root.parents[2] / "queue-state.json")
    if jobs is None or queue is None:
        return {}
    word, reason = "pending", "waits for its turn in the sweep"
    if paths.cancel.exists():
        word, reason = "cancelled", "cancelled by the user"
    elif not is_alive(queue):
        word, reason = "skipped", "the sweep's queue vanished before its turn (machine restarted, or it was killed)"
    return {job["stage"]: JobInfo(job_id="", state=word, reason=reason) for job in jobs["stages"]}


def look(paths: LocalPaths) -> dict[str, JobInfo]:
    """Every stage of one submit as its supervisor last wrote it; empty before it has written anything.

    What a vanished supervisor left as running or pending is said to be failed.
    """
    state = read_object(paths.state)
    if state is None:
        return _queued(paths)
    gone = state.get("ended_at") is None and not _lives(state)
    found = {}
    for name, stage in state.get("stages", {}).items():
        word, reason = stage.get("state", "unknown"), stage.get("reason", "")
        if gone and word in ("running", "pending"):
            word = "failed" if word == "running" else "skipped"
            reason = "the local supervisor vanished (machine restarted, or it was killed)"
        found[name] = JobInfo(
            job_id=str(state.get("pid", "")),
            state=word,
            reason=reason,
            started_at=stage.get("started_at"),
            ended_at=stage.get("ended_at"),
            nodes=state.get("host", ""),
        )
    return found


def cancel(paths: LocalPaths) -> bool:
    """Ask the supervisor to stop its stages; returns whether there was one to ask."""
    state = read_object(paths.state)
    if state is None and paths.jobs.exists():
        paths.cancel.touch()  # before its turn in a sweep
        return True
    if state is None or state.get("ended_at") is not None or not _lives(state):
        return False
    paths.cancel.touch()
    if state.get("host") == socket.gethostname() and is_alive(state):
        os.kill(state["pid"], signal.SIGTERM)
    return True


def _lives(state: dict[str, Any]) -> bool:
    if state.get("host") == socket.gethostname():
        return is_alive(state)
    return time.time() - float(state.get("updated_at", 0)) < _SILENT_S
