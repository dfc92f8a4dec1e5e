"""Slurm, through submitit: one executor a stage, one script text for the dry run and for the real thing.

submitit 1.5 is pinned because two private functions are relied on: `_make_submission_file_text` renders a script
without a cluster, and `_submit_command` is replaced so that sbatch goes through our one door to Slurm. A golden test
holds the whole text.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpclm.errors import SchedulerError, SiteError
from hpclm.scheduler import client
from hpclm.scheduler.jobs import StageJob
from hpclm.site import Site

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

_KEY = re.compile(r"[a-z][a-z0-9-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def render(job: StageJob, site: Site) -> str:
    """The job script of a stage, whole. Pure: needs no scheduler. Raises SiteError for text that cannot be quoted."""
    return str(_executor(job, site).script())


def submission_argv(job: StageJob, parents: dict[str, str]) -> list[str]:
    """What sbatch is given besides the script: parents are job ids by stage (or words, in a dry run).

    A dependency stands here rather than in the script, which is thereby the same in a dry run and in earnest.
    """
    if not job.depends_on:
        return []
    ids = ":".join(parents[stage] for stage in job.depends_on)
    # Without the second option a job whose parent failed pends for ever.
    return [f"--dependency=afterok:{ids}", "--kill-on-invalid-dep=yes"]


def submit(job: StageJob, site: Site, parents: dict[str, str]) -> str:
    """Submit one stage; returns its job id. Raises SchedulerError with Slurm's words."""
    from hpclm.worker import entry  # imports no torch at module level; a test holds that

    executor = _executor(job, site)
    executor.sbatch_argv = submission_argv(job, parents)
    # Two strings and a function by its name: the image's Python may be another version, which loads no pickled body.
    submitted = executor.submit(entry.main, job.stage_dir, job.attempt)
    return str(submitted.job_id)


def _executor(job: StageJob, site: Site) -> Any:
    executor = _executor_class()(folder=str(Path(job.stage_dir) / "submitit"), python=_python(job))
    executor.update_parameters(**_parameters(job, site))
    return executor


def _python(job: StageJob) -> str:
    argv = [*job.launch.prefix, *job.python]
    _refuse_control([*argv, job.stage_dir, job.payload], "the command of a rank")
    return shlex.join(argv)


def _parameters(job: StageJob, site: Site) -> dict[str, Any]:
    """submitit's parameters. Slurm gives every rank of a node all its GPUs: no per-task GPU option is ever set."""
    folder = Path(job.stage_dir) / "submitit"
    extra: dict[str, Any] = {
        "output": f"{folder}/%j_batch.log",
        # `python -m` looks in the working directory first: a checkout there would shadow the payload.
        "chdir": job.stage_dir,
        # A run is continued by `hpclm resume`: an automatic requeue would hide a lost node for two minutes.
        "no-requeue": True,
        **site.sbatch,
    }
    for key, value in extra.items():
        if not _KEY.fullmatch(key):
            raise SiteError(f"{site.origin}: {key!r} is no option of sbatch")
        _refuse_control([str(value)], f"sbatch option {key}")
    parameters: dict[str, Any] = {
        "job_name": job.job_name,
        "comment": job.tag,
        "time": job.time_limit_min,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "cpus_per_task": job.cpus_per_task,
        # 0 asks for all of a node's memory; even --exclusive does not grant that by itself.
        "mem": "0" if job.memory_gib is None else f"{max(1, int(job.memory_gib * 1024))}M",
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "exclusive": True if site.exclusive else None,
        "signal_delay_s": job.warning_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": extra,
        "setup": _setup(job, site),
        "teardown": _teardown(folder),
        # srun of 22.05 to 23.02 does not take --cpus-per-task over from the job.
        "srun_args": [
            f"--cpus-per-task={job.cpus_per_task}",
            "--kill-on-bad-exit=1",
            "--mpi=none",
            *job.launch.srun_args,
        ],
    }
    parameters.update(_gpu_parameters(job, site))
    _refuse_control([str(value) for value in parameters.values() if isinstance(value, (str, int))], "the job script")
    _refuse_control(list(job.launch.srun_args), "srun's arguments")
    return {key: value for key, value in parameters.items() if value is not None or key == "wckey"}


def _gpu_parameters(job: StageJob, site: Site) -> dict[str, Any]:
    if job.device != "gpu" or site.gpu_request == "none":
        return {}
    count = f"{site.gpu_type}:{job.tasks_per_node}" if site.gpu_type else str(job.tasks_per_node)
    # One of the two spellings, never both: together they conflict without a word (4 + 2 gave 2).
    return {"gres": f"gpu:{count}"} if site.gpu_request == "gres" else {"gpus_per_node": count}


def _setup(job: StageJob, site: Site) -> list[str]:
    """Lines before srun: the environment, each value quoted."""
    lines = [f"module load {shlex.quote(module)}" for module in site.modules]
    environment = {**job.environment, **site.environment, **job.launch.environment}
    for name, value in sorted(environment.items()):
        _refuse_control([name, value], f"environment variable {name}")
        lines.append(f"export {name}={shlex.quote(value)}")
    # Our code comes first and nothing of the user's home; outside an image, what the user set stays behind it.
    inherited = "" if job.in_container else '"${PYTHONPATH:+:$PYTHONPATH}"'
    if "PYTHONPATH" not in environment:
        lines.append(f"export PYTHONPATH={shlex.quote(job.payload)}{inherited}")
    if "PYTHONNOUSERSITE" not in environment:
        lines.append("export PYTHONNOUSERSITE=1")
    # Without a trap the shell dies of the scheduler's TERM before it can say how srun ended.
    lines.append("hpclm_signal=-; trap 'hpclm_signal=TERM' TERM")
    return lines


def _teardown(folder: Path) -> list[str]:
    """Lines after srun: what the scheduler will have forgotten in five minutes where there is no accounting."""
    exit_file = f'{shlex.quote(str(folder))}/"$SLURM_JOB_ID"_exit'
    return [
        "hpclm_code=$?",
        f'printf \'%s %s %s\\n\' "$hpclm_code" "$(date +%s)" "$hpclm_signal" > {exit_file}',
        'exit "$hpclm_code"',
    ]


def _refuse_control(texts: list[str], what: str) -> None:
    for text in texts:
        if _CONTROL.search(text):
            raise SiteError(f"{what}: {text!r} holds a control character; remove it")


def _executor_class() -> type[SlurmExecutor]:
    """Made on first use: submitit takes as long to import as everything else a command needs."""
    from submitit.core import core
    from submitit.slurm import slurm

    from hpclm.runs.files import write_text

    class StageExecutor(slurm.SlurmExecutor):  # type: ignore[misc]
        """submitit's executor, for scripts that can be rendered anywhere and errors that are ours."""

        sbatch_argv: list[str]

        @classmethod
        def affinity(cls) -> int:
            return 2  # rendering needs no srun; submitting asks for sbatch itself

        def script(self) -> str:
            return str(self._make_submission_file_text(self._submitit_command_str, ""))

        def _submit_command(self, command: str) -> core.Job[Any]:
            script = Path(self.folder).parent / "job.sh"
            write_text(script, self._make_submission_file_text(command, ""))
            job_id = client.sbatch([*self.sbatch_argv, str(script)])
            job: core.Job[Any] = self.job_class(folder=self.folder, job_id=job_id, tasks=list(range(self._num_tasks())))
            return job

    return StageExecutor


def verify(job_ids: list[str], user: str) -> None:
    """Raises SchedulerError unless the controller knows every id: afterok on an id it does not know runs at once."""
    known = {info.job_id for info in client.jobs_of([user])}
    missing = [job_id for job_id in job_ids if job_id not in known]
    if missing:
        raise SchedulerError(f"the controller does not know job {', '.join(missing)}, on which the next stage depends")
