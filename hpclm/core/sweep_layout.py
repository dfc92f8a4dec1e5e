"""Every path of a sweep and of a folder of runs. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpclm.core.layout import RunPaths


@dataclass(frozen=True)
class SweepPaths:
    """A sweep: its record, its members' runs, and what starts them."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "sweep.json"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def resolved(self) -> Path:
        """The recipes of its members with every default: one JSON object a line, compressed."""
        return self.root / "resolved.jsonl.gz"

    @property
    def payload(self) -> Path:
        """The code of all its members."""
        return self.root / "payload"

    def run(self, name: str) -> RunPaths:
        return RunPaths(self.root / name)

    @property
    def logs(self) -> Path:
        """Batch logs of its members' jobs; see `layout.member_log`."""
        return self.root / "logs"

    @property
    def queue(self) -> Path:
        """The input of the local executor's queue: the members, and how many run at the same time."""
        return self.root / "queue.json"

    @property
    def queue_state(self) -> Path:
        """The process of the queue."""
        return self.root / "queue-state.json"

    @property
    def queue_log(self) -> Path:
        return self.root / "queue.log"

    def array(self, first: int) -> ArrayPaths:
        """The job array whose first member has the index `first` in the sweep."""
        return ArrayPaths(self.root / f"array-{first}")


MEMBER = "@HPCLM_MEMBER@"


@dataclass(frozen=True)
class ArrayPaths:
    """One job array of a sweep: `<root>/<index>` points to the run of a member."""

    root: Path

    def member(self, index: int | str) -> RunPaths:
        return RunPaths(self.root / str(index))

    def script(self, stage: str) -> Path:
        return self.root / f"{stage}.sh"

    def member_script(self, stage: str) -> Path:
        """What a member's job makes its job.sh of: that of all members, with `MEMBER` for the name of its run."""
        return self.root / f"{stage}.job"

    def specs(self, stage: str) -> Path:
        """What a member's job makes its spec.json of: a line for each member, compressed."""
        return self.root / f"{stage}.specs.gz"


@dataclass(frozen=True)
class RunsFolder:
    """A folder of runs and sweeps, and what they share."""

    root: Path

    @property
    def bad_nodes(self) -> Path:
        """The bad-node list: one JSON object a line."""
        return self.root / "nodes.jsonl"

    @property
    def images(self) -> Path:
        """Imported images, if the site sets no other folder."""
        return self.root.parent / "images"

    @property
    def status_index(self) -> Path:
        """The status of runs that are settled, for `status` of many."""
        return self.root / ".status-index.json"

    @property
    def payloads(self) -> Path:
        """Payloads that runs share, by their content."""
        return self.root / ".payloads"

    def run(self, name: str) -> RunPaths:
        return RunPaths(self.root / name)

    def sweep(self, name: str) -> SweepPaths:
        return SweepPaths(self.root / name)
