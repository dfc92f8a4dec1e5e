"""The only module that calls Slurm's commands: argv in, text out, no shell.

Text with explicit separators is requested instead of JSON: JSON came with 21.08, changed its types in 23.11, and on
22.05 `squeue -j X --json` lists every job. The formats used here are the same from 20.11 to 24.11.
"""

from __future__ import annotations

import dataclasses
import itertools
import pwd
import re
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime

from hpclm.core.errors import SchedulerError
from hpclm.core.states import StageState
from hpclm.schedulers.commands import PROBE_S, run_command
from hpclm.schedulers.jobs import JobInfo, member_tag
from hpclm.schedulers.slurm.state_words import pending_reason, state_of

_JOB_ID = re.compile(r"\d+(_\d+)?")
_SQUEUE_FORMAT = "%i|%T|%r|%S|%e|%N|%k"
_SACCT_FORMAT = "JobID,State,ExitCode,Start,End,NodeList"
# Slurm's word for a job whose script a signal ended; which one, only `scontrol show job` says.
_SCRIPT_DIED = "JobLaunchFailure"
_MOST_ASKED_FOR_A_SIGNAL = 20

# Of a command line, and of one word of scancel.
_MOST_WORDS, _MOST_SPANS = 2000, 500


def sbatch(argv: Sequence[str]) -> str:
    """Submit; returns the job id. Raises SchedulerError with Slurm's own message."""
    done = run_command(["sbatch", "--parsable", *argv])
    job_id = done.out.strip().splitlines()[-1].split(";")[0] if done.out.strip() else ""
    if done.code or not job_id.isdecimal():
        raise SchedulerError(f"sbatch refused the job: {done.said}")
    return job_id


def scancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs. Jobs that have ended or are unknown are not an error; anything else raises SchedulerError."""
    words = _compact(job_ids)
    for start in range(0, len(words), _MOST_WORDS):
        done = run_command(["scancel", *words[start : start + _MOST_WORDS]])
        if done.code and "Invalid job id" not in done.err:
            raise SchedulerError(f"scancel: {done.said}")


def _compact(job_ids: Iterable[str]) -> list[str]:
    """Members of an array as one word: 7_0, 7_1 and 7_3 are 7_[0-1,3]."""
    plain, arrays = [], dict[str, set[int]]()
    for job_id in dict.fromkeys(job_ids):
        array, _, index = job_id.partition("_")
        if index.isdecimal():
            arrays.setdefault(array, set()).add(int(index))
        else:
            plain.append(job_id)
    for array, indices in arrays.items():
        spans = []
        for _, group in itertools.groupby(enumerate(sorted(indices)), lambda one: one[1] - one[0]):
            numbers = [number for _, number in group]
            spans.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
        plain += [f"{array}_[{','.join(spans[at : at + _MOST_SPANS])}]" for at in range(0, len(spans), _MOST_SPANS)]
    return plain


def jobs_of(users: Iterable[str], job_ids: Iterable[str] = ()) -> list[JobInfo]:
    """Every job of these users that the controller still knows, ended ones too; accounting's for `job_ids` it forgot.

    One call of squeue however many jobs; one of sacct only if some of `job_ids` are missing. A cluster without
    accounting returns nothing, which is not an error. Raises SchedulerError if the controller cannot be queried.
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
    asked = set(job_ids)
    found = _with_signals(parse_squeue(done.out), asked)
    missing = sorted(asked - {job.job_id for job in found})
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


def _with_signals(jobs: list[JobInfo], asked: set[str]) -> list[JobInfo]:
    """The signal that ended a job's script, for those of `asked` where Slurm has one."""
    left = _MOST_ASKED_FOR_A_SIGNAL
    found = []
    for job in jobs:
        if left and job.job_id in asked and job.state is StageState.FAILED and job.reason == _SCRIPT_DIED:
            left -= 1
            shown = run_command(["scontrol", "--oneliner", "show", "job", job.job_id])
            job = dataclasses.replace(job, signal=_signal(shown.out.partition(" ExitCode=")[2]))
        found.append(job)
    return found


def _signal(exit_code: str) -> int:
    """Of `EXIT:SIGNAL`, as scontrol and sacct write it."""
    numbers = re.match(r"\d+:(\d+)", exit_code)
    return int(numbers[1]) if numbers else 0


def parse_squeue(text: str) -> list[JobInfo]:
    """Lines of `_SQUEUE_FORMAT`. The comment comes last since it may contain anything.

    Members of an array are `12_3`; they share the array's comment, and get their own tag of it (`jobs.member_tag`).
    """
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) == 7 and _JOB_ID.fullmatch(fields[0]):
            job_id, state, reason, start, end, nodes, comment = fields
            tag = member_tag(comment, job_id) if comment.startswith("hpclm:") else ""
            jobs.append(_info(job_id, state, reason, start, end, nodes, tag))
    return jobs


def parse_sacct(text: str) -> list[JobInfo]:
    """Lines of `_SACCT_FORMAT`; the state may be followed by `by 1000` or a `+`."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 6 and _JOB_ID.fullmatch(fields[0]) and fields[1]:
            job_id, state, code, start, end, nodes = fields
            info = dataclasses.replace(_info(job_id, state, "", start, end, nodes, ""), signal=_signal(code))
            by = re.match(r"CANCELLED by (\d+)", state)
            jobs.append(
                dataclasses.replace(info, reason=f"by user {_user(by[1])}", reason_is_final=True) if by else info
            )
    return jobs


def _user(number: str) -> str:
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, OverflowError):
        return number


def _info(job_id: str, raw: str, reason: str, start: str, end: str, nodes: str, tag: str) -> JobInfo:
    """In our words: `DependencyNeverSatisfied` is a job that never starts, in any Slurm state."""
    state = state_of(raw)
    reason = "" if reason == "None" else reason
    if "DependencyNeverSatisfied" in reason:
        state = StageState.SKIPPED
    elif state is StageState.PENDING:
        reason = pending_reason(reason)
    elif state is StageState.UNKNOWN:
        reason = f"the scheduler says {raw}"
    return JobInfo(job_id, state, reason, _time(start), _time(end), nodes, tag, raw_state=raw.split()[0].rstrip("+"))


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # N/A, Unknown, NONE
        return None


def max_array_size() -> int:
    """How many members an array may have. Raises SchedulerError."""
    return int(_configured("MaxArraySize", r"\d+"))


def process_tracker() -> str:
    """The plugin that finds the processes of a step, such as `proctrack/cgroup`. Raises SchedulerError."""
    return _configured("ProctrackType", r"\S+")


def _configured(key: str, value: str) -> str:
    done = run_command(["scontrol", "show", "config"], PROBE_S)
    found = re.search(rf"^{key}\s*=\s*({value})", done.out, re.MULTILINE)
    if done.code or not found:
        raise SchedulerError(f"scontrol: {done.said}")
    return found[1]
