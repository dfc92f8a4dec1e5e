"""Why a stage failed, from what its ranks wrote; srun's own messages only say that something failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.failures import FailureKind, failure_kind, policy
from hpclm.core.files import read_object
from hpclm.core.layout import AttemptPaths
from hpclm.core.states import RankState

_MESSAGE_CHARACTERS = 600
_SLURM_NOISE = ("slurmstepd", "srun:")


@dataclass(frozen=True)
class Failure:
    """The first failure of an attempt.

    Attributes:
        rank: the rank that failed first, None if no rank wrote a record.
    """

    rank: int | None
    kind: FailureKind
    reason: str


def rank_records(attempt: AttemptPaths) -> list[dict[str, Any]]:
    """What every rank wrote, by rank."""
    found = (read_object(path) for path in sorted(attempt.ranks.glob("[0-9]*.json")))
    return [record for record in found if record is not None and isinstance(record.get("rank"), int)]


def first_failure(records: list[dict[str, Any]]) -> Failure | None:
    """The first failure, once the job has ended; None if no rank reported one.

    The earliest rank that failed by itself; else one that vanished without a final record; else, if all waited for each
    other, the one furthest behind; else one that lost a peer or was asked to stop.
    """
    failed = [record for record in records if record.get("state") in (RankState.FAILED, RankState.STOPPED)]
    failed.sort(key=lambda record: float(record.get("ended_at") or 0))
    own = [record for record in failed if not policy(failure_kind(record.get("kind"))).consequence]
    stalls = (FailureKind.WAITED, FailureKind.STALL)
    waited = [record for record in failed if failure_kind(record.get("kind")) in stalls]
    vanished = [record for record in records if record.get("state") == RankState.RUNNING]
    silent = bool(vanished and waited)
    if own and not (silent and all(record in waited for record in own)):
        return _described(own[0])
    if vanished:
        ranks = ", ".join(str(record["rank"]) for record in vanished[:4]) + (", ..." if len(vanished) > 4 else "")
        nodes = ", ".join(sorted({str(record.get("node")) for record in vanished}))
        many = "rank" if len(vanished) == 1 else "ranks"
        if silent:
            return Failure(
                vanished[0]["rank"],
                FailureKind.STALL,
                f"{many} {ranks} on {nodes} hung, and the other ranks waited for it",
            )
        reason = f"{many} {ranks} on {nodes} vanished without an error message (SIGKILL, out of memory or node loss)"
        return Failure(vanished[0]["rank"], FailureKind.VANISHED, reason)
    if waited:
        last = min(waited, key=lambda record: int(record.get("beats") or 0))
        return Failure(last["rank"], FailureKind.STALL, f"the ranks waited for each other; {_described(last).reason}")
    return _described(failed[0]) if failed else None


def _described(record: dict[str, Any]) -> Failure:
    kind = failure_kind(record.get("kind"))
    message = str(record.get("message", "")).strip()
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + " ..."
    # A user's mistake already has its place in the user's file; the place in hpclm's code does not help.
    if kind is not FailureKind.DATA and record.get("error_type") != "ProgramError":
        error_type, where = record.get("error_type"), record.get("where")
        message = f"{error_type}: {message}" if error_type and error_type != message else message
        message = f"{message} ({where})" if where else message
    return Failure(record["rank"], kind, f"rank {record['rank']} on {record.get('node')}: {message}")


def last_output(logs: list[Path]) -> str | None:
    """The last line of the first log that has one: all that is known if a rank died before it could start.

    What Slurm wrote into a log while it ended the job is used only if no rank wrote anything.
    """
    noise = None
    for log in logs:
        try:
            with log.open("rb") as stream:
                stream.seek(max(0, log.stat().st_size - 8192))
                lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
        except OSError:
            continue
        lines = [line for line in lines if line]
        said = [line for line in lines if not line.startswith(_SLURM_NOISE)]
        if said:
            return said[-1][:_MESSAGE_CHARACTERS]
        noise = noise or (lines[-1][:_MESSAGE_CHARACTERS] if lines else None)
    return noise
