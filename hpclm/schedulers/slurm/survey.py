"""The cluster's nodes, checked by a short job: one task per node writes `node.facts` into a shared folder."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import SchedulerError, SiteError
from hpclm.core.files import read_object, write_text
from hpclm.core.payload import stage_payload
from hpclm.core.processes import user_name
from hpclm.core.site import Site
from hpclm.core.states import StageState
from hpclm.schedulers import commands
from hpclm.schedulers.interface import Survey
from hpclm.schedulers.jobs import JobInfo
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.job_script import EXPORT_RANK_VARIABLES
from hpclm.schedulers.slurm.partitions import parse_gres

_LIST = re.compile(r"[A-Za-z0-9._,\[\]-]{1,4096}")
_LIMIT_MIN = 5
_POLL_S = 0.5
# Folders on a network file system show files of another machine a few seconds late.
_LATE_S = 5.0
# `sh -c` calls its first argument, here the interpreter, $0.
_CALL = 'command -v "$0" >/dev/null && exec "$0" "$@"; exec python3 "$@"'
_FREE, _BUSY = ("idle", "planned"), ("mixed", "allocated", "completing")


@dataclass(frozen=True)
class NodeState:
    """A node as the scheduler sees it. `reason` is why it is down or drained."""

    name: str
    state: str
    gpus: int
    reason: str = ""

    @property
    def free(self) -> bool:
        return self._bare in _FREE

    @property
    def usable(self) -> bool:
        return self.free or self._bare in _BUSY

    @property
    def _bare(self) -> str:
        # `idle~` is powered down, and boots when it is allocated; `idle*` does not respond.
        return self.state.rstrip("~#%@+$^-")


def node_states(partition: str) -> dict[str, NodeState]:
    """Every node of a partition. Raises SchedulerError."""
    argv = ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%T|%G|%E"]
    done = commands.run_command(argv, 15.0)
    if done.code:
        raise SchedulerError(f"sinfo: {done.said}")
    found = {}
    for line in done.out.splitlines():
        name, state, gres, reason = [*line.split("|", 3), "", "", ""][:4]
        gpus = sum(count for _, count in parse_gres(gres))
        found[name] = NodeState(name, state, gpus, "" if reason == "none" else reason)
    return found


def choose(asked: str, known: dict[str, NodeState]) -> tuple[list[NodeState], dict[str, str]]:
    """The nodes to check, and why others are not: `all` (idle ones), a number, or a list (`node[0-3],node7`).

    Raises SiteError for nodes that the partition does not have.
    """
    down = {name: _why_down(node) for name, node in known.items() if not node.usable}
    if asked == "all":
        busy = {name: f"is busy ({node.state}); not checked" for name, node in known.items() if not node.free}
        return [node for node in known.values() if node.free], {**busy, **down}
    if asked.isdecimal():
        count = int(asked)
        fit = sorted((node for node in known.values() if node.usable), key=lambda node: not node.free)
        if not 1 <= count <= len(known):
            raise SiteError(f"--nodes {asked}: the partition has {len(known)} nodes; ask for 1 to {len(known)}")
        return fit[:count], down if count > len(fit) else {}
    names = _expanded(asked)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SiteError(f"--nodes: the partition has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return [known[name] for name in names if known[name].usable], {name: down[name] for name in names if name in down}


def _why_down(node: NodeState) -> str:
    return f"is {node.state}" + (f": {node.reason}" if node.reason else "")


def _expanded(asked: str) -> list[str]:
    if not _LIST.fullmatch(asked) or asked.startswith("-"):
        raise SiteError(f"--nodes {asked!r}: give a number, `all`, or names as Slurm writes them (node[0-3],node7)")
    done = commands.run_command(["scontrol", "show", "hostnames", asked])
    if done.code:
        raise SiteError(f"--nodes {asked}: {done.said}")
    return list(dict.fromkeys(done.out.split()))


def survey(site: Site, partition: str, runs_dir: Path, asked: str, wait_s: float, log: Callable[[str], None]) -> Survey:
    """Check the nodes and wait for their results. The job is cancelled and the folder removed in any case.

    Args:
        wait_s: seconds to wait for nodes that have not responded.
        log: called with a line whenever something changes.

    Raises SchedulerError when the job is refused, SiteError for unknown nodes.
    """
    known = node_states(partition)
    nodes, silent = choose(asked, known)
    busy = frozenset(name for name in silent if known[name].usable)
    gpus = min((node.gpus for node in nodes), default=0)
    facts = _ask(site, partition, runs_dir, nodes, gpus, wait_s, log, silent) if nodes else {}
    expected = {name: known[name].gpus for name in facts if name in known and known[name].gpus == gpus and gpus}
    return Survey(facts, silent, busy, expected)


def _ask(
    site: Site,
    partition: str,
    runs_dir: Path,
    nodes: Sequence[NodeState],
    gpus: int,
    wait_s: float,
    log: Callable[[str], None],
    silent: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Facts by node; nodes without facts are added to `silent` with the reason."""
    folder = runs_dir / f".doctor-{secrets.token_hex(4)}"
    job_id = None
    try:
        (folder / "out").mkdir(parents=True)
        stage_payload(folder / "payload")
        write_text(folder / "job.sh", script(site, runs_dir, folder))
        job_id = client.sbatch([*options(site, partition, nodes, gpus, folder), str(folder / "job.sh")])
        log(f"job {job_id} checks {', '.join(node.name for node in nodes)}")
        why = _wait(job_id, nodes, folder, wait_s, log)
        facts = _answers(folder)
        silent.update({node.name: why for node in nodes if node.name not in facts})
        return facts
    except OSError as error:
        raise SiteError(f"{folder}: cannot be written: {error.strerror}; choose another runs_dir") from None
    finally:
        if job_id is not None:
            with contextlib.suppress(SchedulerError):
                client.scancel([job_id])
        shutil.rmtree(folder, ignore_errors=True)


def options(site: Site, partition: str, nodes: Sequence[NodeState], gpus: int, folder: Path) -> list[str]:
    """The arguments of sbatch."""
    given: dict[str, str | bool | None] = {
        "job-name": "hpclm-doctor",
        "partition": partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "nodes": str(len(nodes)),
        "nodelist": ",".join(node.name for node in nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": "1",
        "mem": "512M",
        "time": str(_LIMIT_MIN),
        "output": str(folder / "log"),
        "chdir": str(folder),
        "no-requeue": True,
        **site.sbatch,
    }
    if gpus and site.gpu_request == "gpus-per-node":
        given["gpus-per-node"] = str(gpus)
    elif gpus and site.gpu_request == "gres":
        given["gres"] = f"gpu:{gpus}"
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items() if value]


def script(site: Site, runs_dir: Path, folder: Path) -> str:
    """The job: this interpreter where the nodes have it, else their own. No container,
    since the node itself is checked."""
    contained = site.container.runtime != "none"
    python = sys.executable if contained or not site.python else site.python[0]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(site.environment.items())]
    lines = [
        "#!/bin/bash",
        *exports,
        EXPORT_RANK_VARIABLES,
        f"export PYTHONPATH={shlex.quote(str(folder / 'payload'))} PYTHONNOUSERSITE=1",
        "srun --mpi=none --kill-on-bad-exit=0 sh -c "
        + shlex.join([_CALL, python, "-m", "hpclm.nodes.node_facts", str(runs_dir), str(folder / "out")]),
    ]
    return "\n".join(lines) + "\n"


def _answers(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.stem: read_object(path) for path in sorted((folder / "out").glob("*.json"))}
    return {name: one for name, one in found.items() if one is not None}


def _wait(job_id: str, nodes: Sequence[NodeState], folder: Path, wait_s: float, log: Callable[[str], None]) -> str:
    """Wait until all have responded; otherwise returns why the rest have not."""
    until, shown, over_at = time.monotonic() + wait_s, "", None
    while len(_answers(folder)) < len(nodes):
        info = next((job for job in client.jobs_of([user_name()], [job_id]) if job.job_id == job_id), None)
        words = _job_words(info)
        if words != shown:
            log(f"job {job_id} {words}")
            shown = words
        now = time.monotonic()
        if info is None or info.state.is_over:
            over_at = over_at or now
            if now - over_at > _LATE_S:
                return f"did not respond: job {job_id} {words}; {_log_words(folder)}"
        elif now > until:
            return f"did not respond within {wait_s:.0f} s: job {job_id} {words}"
        time.sleep(_POLL_S)
    return ""


def _job_words(info: JobInfo | None) -> str:
    if info is None:
        return "is no longer known to the scheduler"
    pending = info.state is StageState.PENDING and info.reason
    return f"is {info.state}" + (f": {info.reason}" if pending else "")


def _log_words(folder: Path) -> str:
    """The end of the job's log; without a log the nodes cannot access the folder."""
    try:
        lines = (folder / "log").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return f"it wrote no log: can the nodes access {folder.parent}?"
    said = [line.strip() for line in lines if line.strip()]
    return f"its log ends: {said[-1][:300]}" if said else f"its log is empty: can the nodes access {folder.parent}?"
