"""The environment that commands and jobs start with: what a shell or an outer job has set must not change them."""

from __future__ import annotations

import os

# Set in a user's shell, these change what a command prints or which jobs it shows.
_SCRUBBED = ("SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT", "SBATCH_", "SRUN_", "PYXIS_CONTAINER_")
# Set inside a job, these make a submission inherit that job's shape. SLURM_CONF says which cluster, and stays.
_INSIDE_JOB = ("SLURM_", "SLURMD_", "SUBMITIT_")
_KEPT = ("SLURM_CONF",)
_RANK_VARIABLES = frozenset(
    ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    + [f"HPCLM_{name}" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "RESTART")]
)


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change a Slurm command's meaning or a job's shape."""
    return {
        key: value
        for key, value in os.environ.items()
        if key in _KEPT or not (key.startswith(_SCRUBBED + _INSIDE_JOB) or key in _RANK_VARIABLES)
    }
