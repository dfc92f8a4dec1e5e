"""Every exit code of the command line, of a rank and of a job: one number, one meaning.

docs/exit-codes.md is written from this table: `python -m hpclm.core.exit_codes > docs/exit-codes.md`.
"""

from __future__ import annotations

import sys
from enum import IntEnum

_PAGE = """\
# Exit codes

<!-- Written by `python -m hpclm.core.exit_codes`; a test keeps it in step with the code. -->

One number has one meaning, whether it comes from `hpclm` itself, a rank, or the job of a stage (in `sacct`).

| code | name | meaning |
|---:|---|---|
"""


class ExitCode(IntEnum):
    """Codes up to 10 are returned by the command line (`DATA` by ranks and jobs too), the others by ranks and jobs."""

    OK = 0
    ERROR = 1
    RECIPE = 2
    PLAN = 3
    SITE = 4
    SCHEDULER = 5
    RUN_NOT_FOUND = 6
    RUN_FAILED = 7
    INCOMPLETE = 8
    DATA = 9
    CHECKPOINT = 10
    MEMORY = 11
    PEER_LOST = 20
    STOPPED = 30
    STALL = 40
    RESTARTS = 41
    NO_PROGRESS = 42
    NO_INTERPRETER = 43
    BAD_NODES = 44
    REQUEUE_REFUSED = 45
    ATTEMPTS = 46
    NO_ANSWER = 47
    SECOND_JOB = 48
    DISK = 49
    HARDWARE = 50
    PREFLIGHT_NODE = 60
    PREFLIGHT_RUN = 61
    BROKEN_PIPE = 141
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.ERROR: "an error without a code of its own; `--debug` shows where",
    ExitCode.RECIPE: "the recipe cannot be read: YAML syntax, unknown key, wrong type, bad override",
    ExitCode.PLAN: "the recipe is well-formed but cannot run",
    ExitCode.SITE: "the site profile or the machine lacks what the run needs",
    ExitCode.SCHEDULER: "the scheduler refused a request or did not respond",
    ExitCode.RUN_NOT_FOUND: "there is no run of that name",
    ExitCode.RUN_FAILED: "the run ended, but did not complete",
    ExitCode.INCOMPLETE: "the requested results are not complete",
    ExitCode.DATA: "a data file is missing or malformed, or the loss is not a number",
    ExitCode.CHECKPOINT: "a checkpoint or archive is missing, damaged or belongs to another model",
    ExitCode.MEMORY: "out of memory",
    ExitCode.PEER_LOST: "a rank lost its connection to another rank, or the ranks did not all arrive",
    ExitCode.STOPPED: "stopped by a signal or by the time limit, with everything saved",
    ExitCode.STALL: "a rank made no progress for `recovery.stall_timeout_s`",
    ExitCode.RESTARTS: "failed more often than `recovery.max_restarts` allows",
    ExitCode.NO_PROGRESS: "`recovery.max_without_progress` attempts in a row saved no new step",
    ExitCode.NO_INTERPRETER: "the ranks' Python could not be started on any node",
    ExitCode.BAD_NODES: "more faulty nodes than `recovery.max_bad_nodes`, or too few others left",
    ExitCode.REQUEUE_REFUSED: "Slurm refused to requeue the job",
    ExitCode.ATTEMPTS: "10,000 attempts, or their folders cannot be created",
    ExitCode.NO_ANSWER: "Slurm started no step of the job for minutes, in four jobs",
    ExitCode.SECOND_JOB: "another job runs this stage of the same submit; this one ended at once",
    ExitCode.DISK: "the run's folder could not be written: its file system is full or read-only",
    ExitCode.HARDWARE: "a device reported a hardware error",
    ExitCode.PREFLIGHT_NODE: "preflight: this node is faulty",
    ExitCode.PREFLIGHT_RUN: "preflight: the stage would fail on every node",
    ExitCode.BROKEN_PIPE: "the reader of the output closed the pipe",
    ExitCode.TERMINATED: "Slurm ended the job",
}


def markdown() -> str:
    """docs/exit-codes.md."""
    return _PAGE + "".join(f"| {code.value} | {code.name} | {code.meaning} |\n" for code in ExitCode)


if __name__ == "__main__":
    sys.stdout.write(markdown())
