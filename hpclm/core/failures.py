"""The kinds of failures of a stage, and what is done after each: one enum, one table."""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.exit_codes import ExitCode
from hpclm.core.states import StageState
from hpclm.core.words import Word


class FailureKind(Word):
    """Why an attempt ended without a result, as reported by a rank or the job itself.

    `WAITED` is a stall of a rank that waited for others; the last four say why a stage is not restarted.
    """

    ERROR = "error"
    DATA = "data"
    CHECKPOINT = "checkpoint"
    MEMORY = "memory"
    PROGRAM = "program"
    HARDWARE = "hardware"
    STORAGE = "storage"
    DISK = "disk"
    STALL = "stall"
    WAITED = "waited"
    VANISHED = "vanished"
    PEER_LOST = "peer-lost"
    RENDEZVOUS_TIMEOUT = "rendezvous-timeout"
    SIGNAL = "signal"
    NO_START = "no-start"
    PREFLIGHT = "preflight"
    LIMIT = "limit"
    RESTARTS = "restarts"
    NO_PROGRESS = "no-progress"
    BAD_NODES = "bad-nodes"


# Names in runs of an earlier version.
_EARLIER = {"no-meeting": FailureKind.RENDEZVOUS_TIMEOUT}


class Action(Word):
    """What follows an attempt: restart in this allocation, requeue of the job, or the end of the stage."""

    AGAIN = "again"
    REQUEUE = "requeue"
    STOP = "stop"


@dataclass(frozen=True)
class Policy:
    """What a kind of failure means.

    Attributes:
        action: what follows unless something else prevents it.
        exit_code: exit code of a rank that ends by it, and of a job that stops because of it.
        state: state of the stage that stops because of it.
        consequence: whether it is only a consequence of another rank's failure, which is reported instead.
        free: whether it does not count against `recovery.max_restarts`, since the run did not cause it.
        suspicious: whether a node on which it happens twice is excluded.
        bad_node: whether it proves a node faulty, for other runs too.
    """

    action: Action
    exit_code: ExitCode = ExitCode.ERROR
    state: StageState = StageState.FAILED
    consequence: bool = False
    free: bool = False
    suspicious: bool = False
    bad_node: bool = False


POLICIES: dict[FailureKind, Policy] = {
    # The same program on the same input would fail again.
    FailureKind.ERROR: Policy(Action.STOP),
    FailureKind.DATA: Policy(Action.STOP, ExitCode.DATA),
    FailureKind.CHECKPOINT: Policy(Action.STOP, ExitCode.CHECKPOINT),
    FailureKind.MEMORY: Policy(Action.STOP, ExitCode.MEMORY, StageState.OUT_OF_MEMORY),
    FailureKind.PROGRAM: Policy(Action.AGAIN),
    FailureKind.HARDWARE: Policy(Action.REQUEUE, ExitCode.HARDWARE, bad_node=True),
    FailureKind.STORAGE: Policy(Action.AGAIN),
    FailureKind.DISK: Policy(Action.STOP, ExitCode.DISK),
    FailureKind.STALL: Policy(Action.AGAIN, ExitCode.STALL, suspicious=True),
    FailureKind.WAITED: Policy(Action.AGAIN, ExitCode.STALL, consequence=True),
    FailureKind.VANISHED: Policy(Action.AGAIN, suspicious=True),
    FailureKind.PEER_LOST: Policy(Action.AGAIN, ExitCode.PEER_LOST, consequence=True),
    FailureKind.RENDEZVOUS_TIMEOUT: Policy(Action.AGAIN, ExitCode.PEER_LOST, consequence=True),
    FailureKind.SIGNAL: Policy(Action.REQUEUE, ExitCode.STOPPED, consequence=True, free=True),
    FailureKind.NO_START: Policy(Action.AGAIN),
    FailureKind.PREFLIGHT: Policy(Action.REQUEUE, ExitCode.PREFLIGHT_NODE, free=True, bad_node=True),
    FailureKind.LIMIT: Policy(Action.STOP, ExitCode.STOPPED, StageState.TIMEOUT),
    FailureKind.RESTARTS: Policy(Action.STOP, ExitCode.RESTARTS),
    FailureKind.NO_PROGRESS: Policy(Action.STOP, ExitCode.NO_PROGRESS),
    FailureKind.BAD_NODES: Policy(Action.STOP, ExitCode.BAD_NODES),
}


def policy(kind: FailureKind) -> Policy:
    """What is done after a kind of failure."""
    return POLICIES[kind]


def failure_kind(word: object) -> FailureKind:
    """The kind that a record of a rank names; `ERROR` for an unknown name."""
    if isinstance(word, str) and word in _EARLIER:
        return _EARLIER[word]
    try:
        return FailureKind(word)
    except (ValueError, TypeError):
        return FailureKind.ERROR
