"""Every path of a run, in one place. Standard library only: the ranks import this too.

```
<runs_dir>/<run>/
  run.json  recipe.yaml  resolved.json  plan.json  environment.json
  payload/                         pure Python for the ranks
  local/<submit:03d>/              the local supervisor's own files
  stages/<stage>/
    spec.json  job.sh  scheduler.json  result.json  metrics.jsonl  progress.json
    slurm/                         under Slurm: the batch script's log and its last word
    events.jsonl                   what the job did between attempts
    attempts/<submit:03d>-<restart:02d>/   rendezvous.json, ranks/, logs/, preflight/, stacks/, verdict.json
    checkpoints/  predictions/
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def attempt_name(submit: int | str, restart: int = 0) -> str:
    """`001-00`: which submit of the run, and how often its ranks have been started again since."""
    return f"{int(submit):03d}-{restart:02d}"


@dataclass(frozen=True)
class AttemptPaths:
    """One try at a stage."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def submit(self) -> int:
        return int(self.root.name.split("-")[0])

    @property
    def restart(self) -> int:
        return int(self.root.name.split("-")[1])

    @property
    def rendezvous(self) -> Path:
        """Written by rank 0: where the others find it."""
        return self.root / "rendezvous.json"

    @property
    def ranks(self) -> Path:
        return self.root / "ranks"

    def rank(self, rank: int) -> Path:
        """How a rank is doing and how it ended."""
        return self.ranks / f"{rank:05d}.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, rank: int) -> Path:
        """Output of a rank."""
        return self.logs / f"{rank:05d}.log"

    @property
    def preflight(self) -> Path:
        """What the check before the start found, one file a node."""
        return self.root / "preflight"

    def stack(self, rank: int) -> Path:
        """Where every thread of a rank stood when it was seen to make no progress."""
        return self.root / "stacks" / f"{rank:05d}.txt"

    @property
    def verdict(self) -> Path:
        """What was decided after this attempt, and why; `verdict` beside it is one line of it, for the shell."""
        return self.root / "verdict.json"

    @property
    def verdict_line(self) -> Path:
        return self.root / "verdict"

    @property
    def bad_nodes(self) -> Path:
        """One JSON object a line for each node found to be at fault, as the ledger takes them."""
        return self.root / "bad-nodes"


@dataclass(frozen=True)
class StagePaths:
    """One stage of a run."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def script(self) -> Path:
        """The job script exactly as it was submitted."""
        return self.root / "job.sh"

    @property
    def scheduler(self) -> Path:
        """The last thing a scheduler said of this stage's job: schedulers forget, the run does not."""
        return self.root / "scheduler.json"

    @property
    def slurm(self) -> Path:
        return self.root / "slurm"

    def slurm_batch_log(self, job_id: str) -> Path:
        """Output of the batch script and of srun itself."""
        return self.slurm / f"{job_id}_batch.log"

    def slurm_exit(self, job_id: str) -> Path:
        """Left by the batch script when the stage ends: `<exit code> <unix time> <TERM or ->`."""
        return self.slurm / f"{job_id}_exit"

    @property
    def events(self) -> Path:
        """What the job did between attempts, one JSON object a line: at, job, attempt, event, detail."""
        return self.root / "events.jsonl"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, submit: int | str, restart: int = 0) -> AttemptPaths:
        return AttemptPaths(self.attempts / attempt_name(submit, restart))

    def all_attempts(self, submit: int | None = None) -> list[AttemptPaths]:
        """Every attempt (of one submit), oldest first."""
        pattern = "[0-9]*-[0-9]*" if submit is None else f"{submit:03d}-[0-9]*"
        found = [AttemptPaths(path) for path in self.attempts.glob(pattern)]
        return sorted(found, key=lambda attempt: (attempt.submit, attempt.restart))

    def latest_attempt(self, submit: int | None = None) -> AttemptPaths | None:
        """The newest attempt (of one submit), or None before any rank has started."""
        found = self.all_attempts(submit)
        return found[-1] if found else None

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.json"

    @property
    def latest(self) -> Path:
        return self.checkpoints / "latest.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    def prediction(self, data_rank: int) -> Path:
        return self.predictions / f"rank-{data_rank:05d}.jsonl"

    @property
    def result(self) -> Path:
        """Written by rank 0 last of all: the stage is complete if and only if this exists."""
        return self.root / "result.json"


@dataclass(frozen=True)
class LocalPaths:
    """What the local supervisor of one submit reads and writes."""

    root: Path

    @property
    def jobs(self) -> Path:
        return self.root / "jobs.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def cancel(self) -> Path:
        """Its presence asks the supervisor to stop."""
        return self.root / "cancel"

    @property
    def log(self) -> Path:
        return self.root / "supervisor.log"


@dataclass(frozen=True)
class RunPaths:
    """One run."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.root / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with every override and default in place."""
        return self.root / "resolved.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def payload(self) -> Path:
        """On PYTHONPATH of the ranks."""
        return self.root / "payload"

    @property
    def results(self) -> Path:
        """Where `collect` gathers when it is not told otherwise."""
        return self.root / "results"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def stage(self, name: str) -> StagePaths:
        return StagePaths(self.stages / name)

    def local(self, submit: int) -> LocalPaths:
        return LocalPaths(self.root / "local" / f"{submit:03d}")
