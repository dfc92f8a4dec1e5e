"""The one door to programs of a cluster: argv in, text out, no shell, no user setting that changes either."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from hpclm.core.errors import SchedulerError

TIMEOUT_S = 60.0
PROBE_S = 15.0  # a dry run asks too, and should not hang for a minute where a scheduler is set up but away
# Set in a user's shell, these change what a command prints or which jobs it shows.
_SCRUBBED = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT", "SBATCH_", "SRUN_", "PYXIS_CONTAINER_")
# Set inside a job, these make a submission inherit that job's resources. SLURM_CONF selects the cluster and is kept.
_INSIDE_JOB = ("SLURM_", "SLURMD_", "SUBMITIT_")
_KEPT = ("SLURM_CONF",)
_RANK_VARIABLES = frozenset(
    ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    + [f"HPCLM_{name}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "RESTART")]
)


def clean_environment() -> dict[str, str]:
    """This process's environment without variables that change a Slurm command's meaning or a job's resources."""
    return {
        key: value
        for key, value in os.environ.items()
        if key in _KEPT or not (key.startswith(_SCRUBBED + _INSIDE_JOB) or key in _RANK_VARIABLES)
    }


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its error message on one line, without the program's name in front."""
        text = self.err.strip() or self.out.strip() or f"exit code {self.code}"
        lines = [line.split(": error: ", 1)[-1].split(": fatal: ", 1)[-1].strip() for line in text.splitlines()]
        return "; ".join(dict.fromkeys(line for line in lines if line))


def run_command(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> Completed:
    """Run one command. Raises SchedulerError if it is not installed or does not respond in time."""
    if shutil.which(argv[0]) is None:
        raise SchedulerError(f"{argv[0]} not found: this is not a login node of a Slurm cluster; use --site local")
    try:
        done = subprocess.run(
            list(argv),
            # sbatch passes its environment to the job, so nothing is added for it.
            env=clean_environment() | ({} if argv[0] == "sbatch" else {"SLURM_TIME_FORMAT": "standard"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{argv[0]} did not respond within {timeout_s:.0f} s; is the controller up?") from None
    except OSError as error:
        raise SchedulerError(f"{argv[0]} cannot be run: {error.strerror}") from None
    return Completed(done.returncode, done.stdout, done.stderr)


def output_of(argv: list[str]) -> str | None:
    """What a command prints, None if it does not exist or fails."""
    try:
        done = run_command(argv, PROBE_S)
    except SchedulerError:
        return None
    return done.out if done.code == 0 else None
