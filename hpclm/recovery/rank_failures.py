"""Why a stage failed, from what its ranks wrote; srun's own messages only say that something failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpclm.core.failures import FailureKind, policy
from hpclm.core.files import open_file
from hpclm.core.layout import AttemptPaths
from hpclm.core.rank_report import RankReport
from hpclm.core.records import read_record
from hpclm.core.states import RankState

_MESSAGE_CHARACTERS = 600
_ALL_WAITED = "the ranks waited for each other, and none was behind the others: no node can be blamed"
# What Slurm and Apptainer say of themselves, which is not why a rank ended.
_SLURM_NOISE = ("slurmstepd", "srun:", "INFO:", "WARNING: ")


@dataclass(frozen=True)
class Failure:
    """The first failure of an attempt.

    Attributes:
        rank: the rank that failed first, None if no rank wrote a record.
    """

    rank: int | None
    kind: FailureKind
    reason: str


def rank_reports(attempt: AttemptPaths) -> list[RankReport]:
    """What every rank wrote, by rank."""
    found = (read_record(RankReport, path) for path in sorted(attempt.ranks.glob("[0-9]*.json")))
    return [report for report in found if report is not None]


def first_failure(reports: list[RankReport]) -> Failure | None:
    """The first failure, once the job has ended; None if no rank reported one.

    The earliest rank that failed by itself; else one that vanished without a final record; else, if all waited for each
    other, the one furthest behind; else one that lost a peer or was asked to stop.
    """
    failed = sorted((one for one in reports if one.ended_badly), key=lambda one: one.ended_at or 0.0)
    own = [one for one in failed if not policy(one.failure).consequence]
    waited = [one for one in failed if one.failure in (FailureKind.WAITED, FailureKind.STALL)]
    vanished = [one for one in reports if one.state == RankState.RUNNING]
    silent = bool(vanished and waited)
    if own and not (silent and all(one in waited for one in own)):
        return _described(own[0])
    if vanished:
        ranks = ", ".join(str(one.rank) for one in vanished[:4]) + (", ..." if len(vanished) > 4 else "")
        nodes = ", ".join(sorted({one.node for one in vanished}))
        many = "rank" if len(vanished) == 1 else "ranks"
        if silent:
            return Failure(
                vanished[0].rank,
                FailureKind.STALL,
                f"{many} {ranks} on {nodes} hung, and the other ranks waited for it",
            )
        reason = f"{many} {ranks} on {nodes} vanished without an error message (SIGKILL, out of memory or node loss)"
        return Failure(vanished[0].rank, FailureKind.VANISHED, reason)
    if waited:
        least = min(one.beats for one in waited)
        behind = [one for one in waited if one.beats == least]
        one, alone = behind[0], len(behind) == 1
        what = "the ranks waited for each other" if alone else _ALL_WAITED
        return Failure(one.rank if alone else None, FailureKind.STALL, f"{what}; {_described(one).reason}")
    return _described(failed[0]) if failed else None


def _described(report: RankReport) -> Failure:
    kind, message = report.failure, report.message.strip()
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + " ..."
    # A user's mistake already has its place in the user's file; the place in hpclm's code does not help.
    if kind is not FailureKind.DATA and report.error_type != "ProgramError":
        error_type, where = report.error_type, report.where
        message = f"{error_type}: {message}" if error_type and error_type != message else message
        message = f"{message} ({where})" if where else message
    return Failure(report.rank, kind, f"rank {report.rank} on {report.node}: {message}")


def last_output(logs: list[Path]) -> str | None:
    """The last line of the first log that has one: all that is known if a rank died before it could start.

    What Slurm wrote into a log while it ended the job is used only if no rank wrote anything.
    """
    noise = None
    for log in logs:
        try:
            with open_file(log) as stream:
                stream.seek(max(0, log.stat().st_size - 8192))
                lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
        except OSError:
            continue
        lines = [line for line in lines if line]
        said = [line for line in lines if not line.startswith(_SLURM_NOISE)]
        if said:
            return said[-1][:_MESSAGE_CHARACTERS]
        noise = noise or _of_pyxis(lines) or (lines[-1][:_MESSAGE_CHARACTERS] if lines else None)
    return noise


def _of_pyxis(lines: list[str]) -> str | None:
    """Why Pyxis did not start a container; Slurm's own lines about its consequences follow it."""
    said = [line.split("pyxis:", 1)[1].strip() for line in lines if line.startswith("slurmstepd") and "pyxis:" in line]
    errors = [line for line in said if "[ERROR]" in line]
    found = (errors or said)[-1:]
    return f"pyxis: {found[0].removeprefix('[ERROR]').strip()}"[:_MESSAGE_CHARACTERS] if found else None
