"""What happened to a stage, attempt by attempt, in sentences: from the events of its jobs and the verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpclm.core.files import read_lines
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.recovery.rank_failures import last_words
from hpclm.recovery.restart_decision import Verdict, read_verdict

_STATES = {"memory": "out-of-memory", "limit": "timeout"}
_TAKEN = {
    "preemption": "preempted: its nodes went to a job of higher priority",
    "preempted": "preempted: its nodes went to a job of higher priority",
    "node-failure": "a node failed or was taken down",
    "job-requeue": "requeued by hand or by an administrator",
    "limit": "the job's time limit was reached",
    "slurm": "Slurm took the nodes back",
}
_STOPPED = {
    "limit": ("timeout", "the stage's time limit was reached"),
    "no-nodes": ("failed", "too few nodes of the partition are left that are not at fault; see `hpclm nodes`"),
    "requeue-refused": (
        "failed",
        "Slurm refused to requeue the job; `hpclm resume` continues from the last checkpoint",
    ),
    "no-interpreter": ("failed", "the image or its Python could not be started on any node; see the job's batch log"),
}


@dataclass(frozen=True)
class Ending:
    """Why a stage was given up: one of `jobs.STATES`, and the reason."""

    state: str
    reason: str
    rank: int | None = None


@dataclass
class Chapter:
    """One attempt: its place in the submit from 1, when it began, where, and the events after that."""

    number: int
    attempt: AttemptPaths
    at: float
    nodes: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict | None:
        return read_verdict(self.attempt)


def chapters(paths: StagePaths, submit: int) -> list[Chapter]:
    """Every attempt of a submit that the job has told of, oldest first."""
    found: list[Chapter] = []
    for event in read_lines(paths.events):
        name = str(event.get("attempt", ""))
        if not name.startswith(f"{submit:03d}-"):
            continue
        if event.get("event") == "start":
            at, nodes = float(event.get("at") or 0), str(event.get("detail", ""))
            found.append(Chapter(len(found) + 1, AttemptPaths(paths.attempts / name), at, nodes))
        elif found and found[-1].attempt.name == name:
            found[-1].events.append(event)
    return found


def ending(paths: StagePaths, submit: int) -> Ending | None:
    """How the job said the stage ended, None where it said nothing: it was ended from outside."""
    told = chapters(paths, submit)
    if not told:
        return None
    stop = next((event for event in told[-1].events if event.get("event") == "stop"), None)
    verdict = told[-1].verdict
    if stop is None:
        return None
    if stop.get("detail") in _STOPPED:
        state, reason = _STOPPED[str(stop["detail"])]
        cause = f"; before that: {verdict.reason}" if verdict is not None and verdict.kind != "signal" else ""
        if stop["detail"] == "no-interpreter":
            words = last_words([paths.slurm_batch_log(str(stop.get("job")))])
            cause = f", which ends: {words}" if words else ""
        return Ending(state, reason + cause, verdict.rank if verdict else None)
    if verdict is None:
        return None
    return Ending(_STATES.get(verdict.kind, "failed"), verdict.reason, verdict.rank)


def why_again(paths: StagePaths, submit: int) -> str | None:
    """Why a stage that waits has run before, None where it has not."""
    told = chapters(paths, submit)
    return _what(told[-1], is_last=True) if told else None


def sentences(paths: StagePaths, submit: int) -> list[tuple[float, str]]:
    """A time and a sentence for each attempt that did not simply go well; empty for a stage without disturbance."""
    told = chapters(paths, submit)
    lines = []
    for chapter in told:
        what = _what(chapter, is_last=chapter is told[-1])
        if what is not None:
            lines.append((chapter.at, f"attempt {chapter.number} on {chapter.nodes}: {what}"))
    return lines


def _what(chapter: Chapter, *, is_last: bool) -> str | None:
    """What became of an attempt; None while it goes on, or when it completed the stage."""
    words = {str(event.get("event")): str(event.get("detail", "")) for event in chapter.events}
    verdict = chapter.verdict
    if words.get("end") == "complete":
        return None
    if "stop" in words:
        return f"{verdict.reason if verdict else 'nothing could be started'}; given up"
    if "again" in words:
        return f"{verdict.reason if verdict else 'ended'}; started again on the same nodes"
    if "requeue" in words:
        why = words["requeue"]
        if why == "verdict" and verdict is not None:
            out = f" without {', '.join(verdict.bad)}" if verdict.bad else ""
            return f"{verdict.reason}; requeued{out}"
        return f"{_TAKEN.get(why, _TAKEN['slurm'])}; requeued"
    # The shell that would have told the rest was gone with its node.
    return None if is_last else "the job's first node was lost, or the job was ended at once; requeued by Slurm"
