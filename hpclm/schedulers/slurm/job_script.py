"""Slurm, through submitit: one executor per stage, and the same script text for a dry run and a submit.

submitit writes the script's header and finds the option names of a cluster. What a rank runs is a plain command
with two strings, not submitit's pickle: the pickle is moved into place only after sbatch has returned, so a login shell
that dies in between would break the job, and it is read by the image's Python, which may be another version.

Requirements on submitit and its versions are in submitit_adapter. Golden tests check whole scripts.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpclm.containers import LaunchSpec
from hpclm.core.errors import SiteError
from hpclm.core.layout import StagePaths, member_log
from hpclm.core.node_name import VARIABLES
from hpclm.core.secrets import shell_lines
from hpclm.core.site import Site
from hpclm.core.sweep_layout import MEMBER, ArrayPaths
from hpclm.schedulers.jobs import ArrayJob, StageJob, array_tag
from hpclm.schedulers.slurm.submitit_adapter import render_script

_KEY = re.compile(r"[a-z][a-z0-9-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DECISION_S = 300
# What srun sets in every rank: its rank, how many there are, its number on the node, the node's number and its name.
RANK_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURMD_NODENAME")
EXPORT_RANK_VARIABLES = f"export {VARIABLES}={shlex.quote(' '.join(RANK_VARIABLES))}"
# Further Slurm variables that a program may use, and those that change from job to job.
JOB_VARIABLES = (
    *RANK_VARIABLES,
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NNODES",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_ID",
)


def render(job: StageJob, site: Site) -> str:
    """The complete job script of a stage. Pure: needs no scheduler.

    Raises SiteError for text that cannot be quoted, SchedulerError if the installed submitit does not work.
    """
    return render_script(str(StagePaths(Path(job.stage_dir)).job_folder), _parameters(job, site), _body(job, site))


def submission_argv(job: StageJob, parents: Mapping[str, str], first: tuple[str, ...] = ()) -> list[str]:
    """The arguments of sbatch besides the script: parents are job ids by stage (or placeholders, in a dry run).

    `first`: jobs that every stage without a parent waits for.

    A dependency is given here rather than in the script, so that the script is the same in a dry run and a submit.
    """
    ids = ":".join([parents[stage] for stage in job.depends_on] or first)
    if not ids:
        return []
    # Without the second option a job whose parent failed stays pending for ever.
    return [f"--dependency=afterok:{ids}", "--kill-on-invalid-dep=yes"]


def _parameters(job: StageJob, site: Site) -> dict[str, Any]:
    """submitit's parameters. Slurm gives every rank of a node all GPUs of the node: no
    per-task GPU option is ever set."""
    extra: dict[str, Any] = {
        "output": str(StagePaths(Path(job.stage_dir)).batch_log("%j")),
        # `python -m` looks in the working directory first: a checkout there would shadow the payload.
        "chdir": job.stage_dir,
        "requeue": True,
        **site.sbatch,
    }
    excluded = [*str(extra.get("exclude", "")).split(), *job.exclude]
    if excluded:
        extra["exclude"] = ",".join(excluded)
    for key, value in extra.items():
        if not _KEY.fullmatch(key):
            raise SiteError(f"{site.origin}: {key!r} is not an option of sbatch")
        _refuse_control([str(value)], f"sbatch option {key}")
    parameters: dict[str, Any] = {
        "job_name": job.job_name,
        "comment": job.tag,
        "time": job.time_limit_min,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "cpus_per_task": job.cpus_per_task,
        # 0 requests all of a node's memory; even --exclusive does not do that by itself.
        "mem": "0" if job.memory_gib is None else f"{max(1, int(job.memory_gib * 1024))}M",
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclusive": True if site.exclusive else None,
        "signal_delay_s": job.warning_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "use_srun": False,
        "additional_parameters": extra,
    }
    parameters.update(_gpu_parameters(job, site))
    _refuse_control([str(value) for value in parameters.values() if isinstance(value, (str, int))], "the job script")
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def _gpu_parameters(job: StageJob, site: Site) -> dict[str, Any]:
    if job.device != "gpu" or site.gpu_request == "none":
        return {}
    count = f"{site.gpu_type}:{job.tasks_per_node}" if site.gpu_type else str(job.tasks_per_node)
    # One of the two spellings, never both: together they conflict without a message (4 + 2 gave 2).
    return {"gres": f"gpu:{count}"} if site.gpu_request == "gres" else {"gpus_per_node": count}


# A node's ranks see all GPUs of the job there and take one each: bound to the closest ones, two could get the same.
# Not by --gpu-bind=none: with it Slurm (22.05) no longer says which GPUs are the job's, and ranks would see all.
_UNBOUND = {"gpu": ("unset SLURM_GPU_BIND",), "cpu": ()}


def _body(job: StageJob, site: Site) -> str:
    """What follows the header: environment, what to run, and the loop that runs it. Every value is quoted."""
    # srun of 22.05 to 23.02 does not inherit --cpus-per-task from the job.
    srun = [
        "srun",
        "--unbuffered",
        f"--cpus-per-task={job.cpus_per_task}",
        "--mpi=none",
        *job.launch.srun_args,
    ]
    python = [*job.launch.prefix, *job.python, "-u"]
    settings = {
        "stage": job.stage_dir,
        "submit": job.attempt,
        "limit_s": str(job.time_limit_min * 60),
        "total_s": str(job.total_time_min * 60),
        # Slurm warns up to a minute early; the time left then is too short for another job.
        "least_s": str(2 * job.warning_s + 60),
        "preflight_s": str(job.preflight_s),
        "decision_s": str(_DECISION_S),
        "bad_node_list": job.bad_node_list,
    }
    lines = [*_environment(job, site), EXPORT_RANK_VARIABLES, *_UNBOUND[job.device], ""]
    for name, value in settings.items():
        _refuse_control([value], name)
        lines.append(f"hpclm_{name}={shlex.quote(value)}")
    arrays = {
        "srun": srun,
        "ranks": [*python, "-m", "hpclm.worker", job.stage_dir, job.attempt],
        "python": python,
    }
    for name, words in arrays.items():
        _refuse_control(words, f"the command ({name})")
        lines.append(f"hpclm_{name}=({shlex.join(words)})")
    return "\n".join([*lines, "", f". {shlex.quote(job.payload + '/launch/supervise.sh')}"])


def _environment(job: StageJob, site: Site) -> list[str]:
    lines = [f"module load {shlex.quote(module)}" for module in site.modules]
    environment = {**job.environment, **site.environment, **job.launch.environment}
    for name, value in sorted(environment.items()):
        _refuse_control([name, value], f"environment variable {name}")
        lines.append(f"export {name}={shlex.quote(value)}")
    lines += shell_lines(site.secrets)
    # hpclm's code comes first, without packages from the user's home; outside an image,
    # what the user or site set follows it.
    inherited = "" if job.in_container else '"${PYTHONPATH:+:$PYTHONPATH}"'
    _refuse_control([job.payload], "the run's folder")
    lines.append(f"export PYTHONPATH={shlex.quote(job.payload)}{inherited}")
    if "PYTHONNOUSERSITE" not in environment:
        lines.append("export PYTHONNOUSERSITE=1")
    return lines


def render_array(job: StageJob, site: Site, array: ArrayJob) -> str:
    """One script for a stage of many similar runs: each member makes the folder of its stage, where it is not there
    yet, and runs its job.sh there. So a sweep of hundreds is a handful of files until its jobs start."""
    own = dataclasses.replace(
        job, stage_dir=array.folder, run=array.sweep, title=array.sweep, environment={}, python=(), launch=LaunchSpec()
    )
    limit = f"%{array.max_running}" if array.max_running else ""
    parameters = _parameters(own, site)
    parameters["comment"] = array_tag(array, job.stage)
    parameters["additional_parameters"] |= {
        "array": f"0-{array.count - 1}{limit}",
        "output": str(member_log(Path(array.folder).parent, job.stage, "%A_%a")),
    }
    paths = ArrayPaths(Path(array.folder))
    settings = {
        "array": array.folder,
        "stage": job.stage,
        "specs": str(paths.specs(job.stage)),
        "script": str(paths.member_script(job.stage)),
        # from the folder of the stage's jobs, so that a moved sweep has it too
        "log": "../../../../logs",
    }
    lines = [f"hpclm_{name}={shlex.quote(value)}" for name, value in settings.items()]
    return render_script(array.folder, parameters, "\n".join([*lines, _MEMBER]))


# A member's run is named by letters, digits, dots, dashes and underscores.
_MEMBER = f"""\
set -e -o pipefail
cd -P "$hpclm_array/$SLURM_ARRAY_TASK_ID"
hpclm_member=${{PWD##*/}}
hpclm_job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
mkdir -p "stages/$hpclm_stage/slurm"
cd "stages/$hpclm_stage"
ln -sf "$hpclm_log/$hpclm_stage-${{hpclm_job}}_batch.log" "slurm/${{hpclm_job}}_batch.log"
if [ ! -e spec.json ]; then
  gzip -dc "$hpclm_specs" | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" >".spec.$hpclm_job"
  mv ".spec.$hpclm_job" spec.json
fi
if [ ! -e job.sh ]; then
  sed "s/{MEMBER}/$hpclm_member/g" "$hpclm_script" >".job.$hpclm_job"
  mv ".job.$hpclm_job" job.sh
fi
exec bash ./job.sh"""


def _refuse_control(texts: list[str], what: str) -> None:
    for text in texts:
        if _CONTROL.search(text):
            raise SiteError(f"{what}: {text!r} contains a control character; remove it")
