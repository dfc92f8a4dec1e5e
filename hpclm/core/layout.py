"""Every path of a run, in one place (`sweep_layout` has those of sweeps, `checkpoint_layout` those of checkpoints).

Standard library only: the ranks import this too.

```
<runs_dir>/<run>/
  run.json  recipe.yaml  resolved.json  plan.json  environment.json
  payload/                         pure Python for the ranks
  local/<submit:03d>/              the local supervisor's own files
  stages/<stage>/
    spec.json  job.sh  scheduler.json  result.json  metrics.jsonl  progress.json
    slurm/                         under Slurm: the batch script's log and exit record
    events.jsonl                   what the job did between attempts
    attempts/<submit:03d>-<restart:02d>/   rendezvous.json, ranks/, logs/, preflight/, stacks/, decision.json
    devices/                       what each node's GPUs did, in rows as those of metrics.jsonl
    data/  checkpoints/  predictions/
<runs_dir>/<sweep>/              sweep.json, and <sweep>.<index:03d>/ for each of its runs; what these share:
  recipe.yaml  environment.json  payload/  resolved.jsonl.gz
  array-<first>/  logs/            under Slurm: what a member's job makes its stage's folder of, and its batch log
<runs_dir>/nodes.jsonl           the bad-node list
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.checkpoint_layout import CheckpointFolder


def attempt_name(submit: int | str, restart: int = 0) -> str:
    """`001-00`: the number of the submit, and how often its ranks have been restarted since."""
    return f"{int(submit):03d}-{restart:02d}"


_ATTEMPT = re.compile(r"[0-9]{3,9}-[0-9]{2,9}")
CHECKPOINTS = "checkpoints"
RUN_RECORD = "run.json"
_DEVICES = "devices"


@dataclass(frozen=True)
class AttemptPaths:
    """One attempt at a stage."""

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
        """Written by rank 0: the address where the other ranks find it."""
        return self.root / "rendezvous.json"

    @property
    def ranks(self) -> Path:
        return self.root / "ranks"

    def rank(self, rank: int) -> Path:
        """The state of a rank and how it ended."""
        return self.ranks / f"{rank:05d}.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def corpus(self) -> Path:
        """How a corpus is cut, written by rank 0 for all ranks."""
        return self.root / "corpus.json"

    def log(self, rank: int) -> Path:
        """Output of a rank."""
        return self.logs / f"{rank:05d}.log"

    @property
    def preflight(self) -> Path:
        """What the preflight check found, one file per node."""
        return self.root / "preflight"

    def stack(self, rank: int) -> Path:
        """The stack of every thread of a rank when it was found to make no progress."""
        return self.root / "stacks" / f"{rank:05d}.txt"

    @property
    def flight_recorder(self) -> Path:
        """The collectives that each rank last began, in torch's format: the rank's number is appended."""
        return self.root / "flight-recorder" / "rank_"

    def preflight_report(self, node: str) -> Path:
        """Of one node."""
        return self.preflight / f"{node}.json"

    @property
    def heartbeat(self) -> Path:
        """Rank 0 updates its time while it makes progress."""
        return self.root / "heartbeat"

    def arrived(self, rank: int) -> Path:
        """Written by a rank of an external program that has reached rank 0; contains its machine's boot id."""
        return self.root / f"met-{rank:05d}"

    def finished(self, rank: int) -> Path:
        """Written by a rank whose external program has succeeded."""
        return self.root / f"done-{rank:05d}"

    @property
    def reporter(self) -> Path:
        """Made by the first rank whose external program printed a step: that rank reports for all."""
        return self.root / "reporter"

    @property
    def decision(self) -> Path:
        """The restart decision after this attempt; `decision_line` next to it is one line of it, for the shell."""
        return self.root / "decision.json"

    @property
    def earlier_decision(self) -> Path:
        """The file's name in runs of version 1."""
        return self.root / "verdict.json"

    @property
    def decision_line(self) -> Path:
        return self.root / "decision"

    @property
    def bad_nodes(self) -> Path:
        """One JSON object a line for each faulty node, in the format of the bad-node list."""
        return self.root / "bad-nodes"


def member_log(sweep: Path, stage: str, job_id: str) -> Path:
    """The batch log of a member's stage, in the folder of its sweep."""
    return sweep / "logs" / f"{stage}-{job_id}_batch.log"


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
        """The last known state of this stage's job: schedulers forget ended jobs, the run must not."""
        return self.root / "scheduler.json"

    @property
    def job_folder(self) -> Path:
        """What a scheduler's job writes besides the ranks' files."""
        return self.root / "slurm"

    def batch_log(self, job_id: str) -> Path:
        """Output of the batch script and of the command that starts the ranks. The stage of a sweep's member has a link
        to it in its folder, which its job makes when it starts; until then it is in the sweep alone."""
        own = self.job_folder / f"{job_id}_batch.log"
        early = member_log(self.root.parents[2], self.name, job_id) if len(self.root.parents) > 2 else own
        return early if early.exists() and not own.exists() else own

    def batch_logs(self) -> list[Path]:
        """Of every job of the stage, oldest first."""
        logs = [path for path in self.job_folder.glob("*_batch.log") if path.exists()]
        return sorted(logs, key=lambda path: path.stat().st_mtime)

    def job_exit(self, job_id: str) -> Path:
        """Left by the batch script when the stage ends: `<exit code> <unix time> <TERM or ->`."""
        return self.job_folder / f"{job_id}_exit"

    @property
    def events(self) -> Path:
        """What the job did between attempts, one JSON object per line: at, job, attempt, event, detail."""
        return self.root / "events.jsonl"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, submit: int | str, restart: int = 0) -> AttemptPaths:
        return AttemptPaths(self.attempts / attempt_name(submit, restart))

    def spent(self, submit: int | str) -> Path:
        """Seconds of the stage's time limit that earlier jobs of a submit used."""
        return self.attempts / f"{int(submit):03d}.spent"

    def claim(self, submit: int | str) -> Path:
        """The job that runs a submit's stage; written by the first that starts, and another one ends at once."""
        return self.attempts / f"{int(submit):03d}.job"

    def claim_after(self, submit: int | str, job_id: str) -> Path:
        """The job that runs it where `job_id` had it and is dead."""
        return self.attempts / f"{int(submit):03d}.job.after.{job_id}"

    def all_attempts(self, submit: int | None = None) -> list[AttemptPaths]:
        """Every attempt (of one submit), oldest first."""
        pattern = "[0-9]*-[0-9]*" if submit is None else f"{submit:03d}-[0-9]*"
        found = [AttemptPaths(path) for path in self.attempts.glob(pattern) if _ATTEMPT.fullmatch(path.name)]
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

    def device_metrics(self, node_rank: int) -> Path:
        """What a node's devices did, in rows as those of `metrics`; written by that node alone."""
        return self.root / _DEVICES / f"{node_rank:05d}.jsonl"

    def all_device_metrics(self) -> list[Path]:
        return sorted((self.root / _DEVICES).glob("[0-9]*.jsonl"))

    def tracked(self, tracker: str) -> Path:
        """What a tracker makes of the metrics."""
        return self.root / tracker

    @property
    def data(self) -> Path:
        """Prepared data: tokenizer and indexed text."""
        return self.root / "data"

    @property
    def prepared_rows(self) -> Path:
        """Where the tokenised rows of each role are."""
        return self.data / "rows.json"

    @property
    def tokens(self) -> Path:
        """Data sets that a tokenize stage makes."""
        return self.root / "tokens"

    @property
    def checkpoints(self) -> Path:
        return self.root / CHECKPOINTS

    @property
    def best(self) -> Path:
        return CheckpointFolder(self.checkpoints).best

    @property
    def latest(self) -> Path:
        return CheckpointFolder(self.checkpoints).latest

    def checkpoint(self, step: int) -> Path:
        return CheckpointFolder(self.checkpoints).step(step)

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def made_from(self) -> Path:
        """What the predictions next to it depend on."""
        return self.predictions / "made-from.json"

    def prediction(self, data_rank: int) -> Path:
        return self.predictions / f"rank-{data_rank:05d}.jsonl"

    @property
    def harness_scores(self) -> Path:
        """Of the tasks that lm-evaluation-harness is through with."""
        return self.root / "harness-scores.json"

    @property
    def result(self) -> Path:
        """Written by rank 0 last of all: the stage is complete if and only if this exists."""
        return self.root / "result.json"

    @property
    def run(self) -> RunPaths:
        """The run that this stage belongs to."""
        return RunPaths(self.root.parent.parent)


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
        """If this file exists, the supervisor stops."""
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
        return self.root / RUN_RECORD

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

    def shared(self, path: Path) -> Path:
        """A file of the run, or of the sweep that the run is a member of."""
        return path if path.exists() else self.root.parent / path.name

    @property
    def payload(self) -> Path:
        """On PYTHONPATH of the ranks."""
        return self.root / "payload"

    @property
    def lock(self) -> Path:
        """Held while a resume or a cancel changes the run."""
        return self.root / ".lock"

    @property
    def results(self) -> Path:
        """The default output folder of `collect`."""
        return self.root / "results"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    def stage(self, name: str) -> StagePaths:
        return StagePaths(self.stages / name)

    def local(self, submit: int) -> LocalPaths:
        return LocalPaths(self.root / "local" / f"{submit:03d}")
