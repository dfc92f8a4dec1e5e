"""The attempt history of a stage, in sentences: from the events of its jobs and the restart decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpclm.core.failures import FailureKind, policy
from hpclm.core.files import read_lines
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.core.records import from_dict
from hpclm.core.states import StageState
from hpclm.recovery.rank_failures import last_output
from hpclm.recovery.restart_decision import Decision, read_decision

_TAKEN = {
    "preemption": "preempted by a job of higher priority",
    "preempted": "preempted by a job of higher priority",
    "node-failure": "a node failed or was taken down",
    "job-requeue": "requeued by hand or by an administrator",
    "limit": "the job's time limit was reached",
    "no-answer": "Slurm started no step of the job for minutes",
    "slurm": "Slurm revoked the allocation",
}
_STOPPED = {
    "limit": (StageState.TIMEOUT, "the stage's time limit was reached"),
    "no-nodes": (StageState.FAILED, "too few healthy nodes are left in the partition; see `hpclm nodes`"),
    "requeue-refused": (
        StageState.FAILED,
        "Slurm refused to requeue the job; `hpclm resume` continues from the last checkpoint",
    ),
    "no-answer": (
        StageState.FAILED,
        "Slurm started no step of the job for minutes; `hpclm resume` continues from the last checkpoint",
    ),
    "no-interpreter": (
        StageState.FAILED,
        "the ranks' Python could not be started on any node; see the job's batch log",
    ),
}


@dataclass(frozen=True)
class Ending:
    """Why a stage was stopped: its state and the reason."""

    state: StageState
    reason: str
    rank: int | None = None


@dataclass(frozen=True)
class Event:
    """A line of a stage's events, as the job's script writes them. `at`: unix seconds."""

    event: str
    at: float = 0.0
    job: str = ""
    attempt: str = ""
    detail: str = ""


@dataclass
class Attempt:
    """One attempt: its number in the submit from 1, when it began, where, and the events after that."""

    number: int
    paths: AttemptPaths
    at: float
    nodes: str
    events: list[Event] = field(default_factory=list)

    @property
    def decision(self) -> Decision | None:
        return read_decision(self.paths)


def attempts(paths: StagePaths, submit: int) -> list[Attempt]:
    """Every attempt of a submit in the job's events, oldest first."""
    found: list[Attempt] = []
    for event in _events(paths):
        if not event.attempt.startswith(f"{submit:03d}-"):
            continue
        if event.event == "start":
            folder = AttemptPaths(paths.attempts / event.attempt)
            found.append(Attempt(len(found) + 1, folder, event.at, event.detail))
        elif found and found[-1].paths.name == event.attempt:
            found[-1].events.append(event)
    return found


def _events(paths: StagePaths) -> Iterator[Event]:
    for line in read_lines(paths.events):
        with contextlib.suppress(ValueError):
            yield from_dict(Event, line, ignore_unknown=True)


def ending(paths: StagePaths, submit: int) -> Ending | None:
    """How the stage ended according to the job; None if the job recorded nothing, since it was ended from outside."""
    tried = attempts(paths, submit)
    if not tried:
        return None
    stop = next((event for event in tried[-1].events if event.event == "stop"), None)
    decision = tried[-1].decision
    if stop is None:
        return None
    if stop.detail in _STOPPED:
        state, reason = _STOPPED[stop.detail]
        known = decision is not None and decision.kind is not FailureKind.SIGNAL
        cause = f"; before that: {decision.reason}" if decision is not None and known else ""
        if stop.detail == "no-interpreter":
            words = last_output([paths.batch_log(Path(stop.job).name)])
            cause = f", which ends: {words}" if words else ""
        return Ending(state, reason + cause, decision.rank if decision else None)
    if decision is None:
        return None
    return Ending(policy(decision.kind).state, decision.reason, decision.rank)


def why_again(paths: StagePaths, submit: int) -> str | None:
    """Why a waiting stage was restarted, None if it has not run before."""
    tried = attempts(paths, submit)
    return _what(tried[-1], is_last=True) if tried else None


def sentences(paths: StagePaths, submit: int) -> list[tuple[float, str]]:
    """A time and a sentence for each attempt that failed or was interrupted; empty for a stage without restarts."""
    tried = attempts(paths, submit)
    lines = []
    for attempt in tried:
        what = _what(attempt, is_last=attempt is tried[-1])
        if what is not None:
            lines.append((attempt.at, f"attempt {attempt.number} on {attempt.nodes}: {what}"))
    return lines


def _what(attempt: Attempt, *, is_last: bool) -> str | None:
    """How an attempt ended; None while it is running, or if it completed the stage."""
    words = {event.event: event.detail for event in attempt.events}
    decision = attempt.decision
    if words.get("end") == "complete":
        return None
    if "stop" in words:
        _, known = _STOPPED.get(words["stop"], (None, "ended"))
        after = "not restarted" if is_last else "requeued by Slurm"
        return f"{decision.reason if decision else known}; {after}"
    if "again" in words:
        return f"{decision.reason if decision else 'ended'}; restarted on the same nodes"
    if "requeue" in words:
        why = words["requeue"]
        if why in ("decision", "verdict") and decision is not None:
            out = f" without {', '.join(decision.bad)}" if decision.bad else ""
            return f"{decision.reason}; requeued{out}"
        return f"{_TAKEN.get(why, _TAKEN['slurm'])}; requeued"
    # The shell that would have recorded the rest was lost with its node.
    return None if is_last else "the job's first node was lost, or the job was killed; requeued by Slurm"
