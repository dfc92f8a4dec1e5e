"""The one door to Slurm's commands: argv in, text out, no shell.

Text with explicit separators is asked for rather than JSON: JSON came with 21.08, changed its types in 23.11, and on
22.05 `squeue -j X --json` lists every job. The formats used here are the same from 20.11 to 24.11.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from hpclm.core.errors import SchedulerError
from hpclm.schedulers.jobs import JobInfo, member_tag

_TIMEOUT_S = 60.0
_JOB_ID = re.compile(r"\d+(_\d+)?")
_SINFO_S = 15.0  # a dry run asks too, and should not hang for a minute where Slurm is set up but away
_SQUEUE_FORMAT = "%i|%T|%r|%S|%e|%N|%k"
_SACCT_FORMAT = "JobID,State,Start,End,NodeList"
# Set in a user's shell, these change what a command prints or which jobs it shows.
_SCRUBBED = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT", "SBATCH_", "SRUN_", "PYXIS_CONTAINER_")
# Set inside a job, these make a submission inherit that job's shape. SLURM_CONF says which cluster, and stays.
_INSIDE_JOB = ("SLURM_", "SLURMD_", "SUBMITIT_")
_KEPT = ("SLURM_CONF",)
_RANK_VARIABLES = frozenset(
    ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    + [f"HPCLM_{name}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "RESTART")]
)


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its complaint on one line, without the program's name in front."""
        text = self.err.strip() or self.out.strip() or f"exit code {self.code}"
        lines = [line.split(": error: ", 1)[-1].split(": fatal: ", 1)[-1].strip() for line in text.splitlines()]
        return "; ".join(dict.fromkeys(line for line in lines if line))


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change a Slurm command's meaning or a job's shape."""
    return {
        key: value
        for key, value in os.environ.items()
        if key in _KEPT or not (key.startswith(_SCRUBBED + _INSIDE_JOB) or key in _RANK_VARIABLES)
    }


def run_command(argv: Sequence[str], timeout_s: float = _TIMEOUT_S) -> Completed:
    """Run one command. Raises SchedulerError when it is not installed or does not answer in time."""
    if shutil.which(argv[0]) is None:
        raise SchedulerError(f"{argv[0]} not found: this is no login node of a Slurm cluster; use --site local")
    try:
        done = subprocess.run(
            list(argv),
            # sbatch hands its environment to the job, so nothing is added for it.
            env=clean_environment() | ({} if argv[0] == "sbatch" else {"SLURM_TIME_FORMAT": "standard"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{argv[0]} did not answer within {timeout_s:.0f} s; is the controller up?") from None
    except OSError as error:
        raise SchedulerError(f"{argv[0]} cannot be run: {error.strerror}") from None
    return Completed(done.returncode, done.stdout, done.stderr)


def sbatch(argv: Sequence[str]) -> str:
    """Submit; returns the job id. Raises SchedulerError with Slurm's own words."""
    done = run_command(["sbatch", "--parsable", *argv])
    job_id = done.out.strip().splitlines()[-1].split(";")[0] if done.out.strip() else ""
    if done.code or not job_id.isdigit():
        raise SchedulerError(f"sbatch refused the job: {done.said}")
    return job_id


def scancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs. Those already over or forgotten are no error; anything else raises SchedulerError."""
    ids = list(job_ids)
    if not ids:
        return
    done = run_command(["scancel", *ids])
    if done.code and "Invalid job id" not in done.err:
        raise SchedulerError(f"scancel: {done.said}")


def jobs_of(users: Iterable[str], job_ids: Iterable[str] = ()) -> list[JobInfo]:
    """Every job of these users that the controller still knows, ended ones too; accounting's for `job_ids` it forgot.

    One call of squeue however many jobs; one of sacct only if some of `job_ids` are missing. A cluster without
    accounting answers nothing, which is no error. Raises SchedulerError when the controller cannot be asked.
    """
    argv = [
        "squeue",
        "--noheader",
        "--states=all",
        "--array",
        f"--user={','.join(sorted(set(users)))}",
        f"--format={_SQUEUE_FORMAT}",
    ]
    done = run_command(argv)
    if done.code:
        raise SchedulerError(f"squeue: {done.said}")
    found = parse_squeue(done.out)
    missing = sorted(set(job_ids) - {job.job_id for job in found})
    if missing and shutil.which("sacct"):
        past = run_command(
            [
                "sacct",
                "--noheader",
                "--parsable2",
                "--allocations",
                f"--format={_SACCT_FORMAT}",
                f"--jobs={','.join(missing)}",
            ]
        )
        if past.code == 0:
            found += parse_sacct(past.out)
    return found


def parse_squeue(text: str) -> list[JobInfo]:
    """Lines of `_SQUEUE_FORMAT`. The comment comes last since it may hold anything.

    Members of an array are `12_3`; they share the array's comment, and get their own tag of it (`jobs.member_tag`).
    """
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) == 7 and _JOB_ID.fullmatch(fields[0]):
            job_id, state, reason, start, end, nodes, comment = fields
            tag = member_tag(comment, job_id) if comment.startswith("hpclm:") else ""
            reason = "" if reason == "None" else reason
            jobs.append(JobInfo(job_id, state.split()[0], reason, _time(start), _time(end), nodes, tag))
    return jobs


def parse_sacct(text: str) -> list[JobInfo]:
    """Lines of `_SACCT_FORMAT`; the state may be followed by `by 1000` or a `+`."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 5 and _JOB_ID.fullmatch(fields[0]) and fields[1]:
            job_id, state, start, end, nodes = fields
            jobs.append(JobInfo(job_id, state.split()[0].rstrip("+"), "", _time(start), _time(end), nodes))
    return jobs


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # N/A, Unknown, NONE
        return None


def max_array_size() -> int:
    """How many members an array may have. Raises SchedulerError."""
    done = run_command(["scontrol", "show", "config"], _SINFO_S)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.out, re.MULTILINE)
    if done.code or not found:
        raise SchedulerError(f"scontrol: {done.said}")
    return int(found[1])


@dataclass(frozen=True)
class Partition:
    """One partition as sinfo shows it; None is unknown or unlimited.

    Attributes:
        gpu_types: the types its GPUs are configured with, each with the most a node has; empty where they have none.
    """

    name: str
    default: bool
    up: bool
    nodes: int
    cpus_per_node: int | None
    memory_mib_per_node: int | None
    gpus_per_node: int
    time_limit_min: int | None
    gpu_types: tuple[tuple[str, int], ...] = ()


def partitions() -> list[Partition]:
    """What the cluster offers. A partition with unlike nodes is given by its largest. Raises SchedulerError."""
    done = run_command(["sinfo", "--noheader", "--format=%P|%a|%D|%c|%m|%l|%G"], _SINFO_S)
    if done.code:
        raise SchedulerError(f"sinfo: {done.said}")
    return parse_sinfo(done.out)


def parse_sinfo(text: str) -> list[Partition]:
    """One line a group of like nodes; groups of one partition are merged."""
    merged: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7:
            continue
        name, up, nodes, cpus, memory, limit, gres = fields
        old, gpus = merged.get(name.rstrip("*")), parse_gres(gres)
        merged[name.rstrip("*")] = Partition(
            name=name.rstrip("*"),
            default=name.endswith("*"),
            up=up == "up",
            nodes=_number(nodes, 0) + (old.nodes if old else 0),
            cpus_per_node=max(_number(cpus, 0), (old and old.cpus_per_node) or 0) or None,
            memory_mib_per_node=max(_number(memory, 0), (old and old.memory_mib_per_node) or 0) or None,
            gpus_per_node=max(sum(count for _, count in gpus), old.gpus_per_node if old else 0),
            time_limit_min=parse_minutes(limit),
            gpu_types=_merged_types(old.gpu_types if old else (), gpus),
        )
    return list(merged.values())


def _number(text: str, default: int) -> int:
    digits = text.rstrip("+")  # `16+`: the smallest of unlike nodes
    return int(digits) if digits.isdigit() else default


def parse_gres(gres: str) -> list[tuple[str, int]]:
    """Type and count of the GPUs in `gpu:a100:4(S:0-1),nic:2` or `gpu:8`; the type is "" where there is none."""
    found = []
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):  # (S:0,2-3): the sockets it hangs on
        kind, *rest = part.strip().split(":")
        if kind == "gpu":
            counted = bool(rest) and rest[-1].isdigit()
            words = [word for word in (rest[:-1] if counted else rest) if word not in ("no_consume", "(null)")]
            found.append((words[0] if words else "", int(rest[-1]) if counted else 1))
    return found


def _merged_types(known: tuple[tuple[str, int], ...], gpus: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """The most a node has of each type, over all groups of nodes."""
    most = dict(known)
    for name in dict.fromkeys(name for name, _ in gpus if name):
        here = sum(count for one, count in gpus if one == name)
        most[name] = max(most.get(name, 0), here)
    return tuple(most.items())


def parse_minutes(text: str) -> int | None:
    """Slurm's `days-hours:minutes:seconds`, shortened from the left, in whole minutes; None for `infinite`."""
    days, dash, rest = text.rpartition("-")
    pieces = rest.split(":")
    if not all(piece.isdigit() for piece in [*pieces, *([days] if dash else [])]):
        return None
    numbers = [int(piece) for piece in pieces]
    if dash:
        hours, minutes = [*numbers, 0, 0][:2]
        return int(days) * 1440 + hours * 60 + minutes
    return numbers[0] * 60 + numbers[1] if len(numbers) == 3 else numbers[0]
