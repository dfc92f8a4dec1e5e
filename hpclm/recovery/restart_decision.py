"""After an attempt without a result: restart the ranks here, requeue the job, or stop, and why.

    python -m hpclm.recovery.restart_decision STAGE_DIR ATTEMPT ENDS_AT NODES

is a step of the job, run inside the image after the ranks have ended (`launch/supervise.sh`); the local supervisor
calls `decide` itself. It writes into the attempt `decision.json`, `decision` (one line for the shell: `again`,
`requeue NODES,…` or `stop CODE`) and `bad-nodes`. `core.failures.POLICIES` says what follows each failure. Standard
library only.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.failures import Action, FailureKind, failure_kind, policy
from hpclm.core.files import append_line, open_file, read_object, write_json, write_text
from hpclm.core.layout import AttemptPaths, StagePaths
from hpclm.core.preflight_report import PreflightReport
from hpclm.core.records import from_dict, read_record, to_dict
from hpclm.core.spec import RecoverySpec
from hpclm.core.storage import refused
from hpclm.recovery.rank_failures import Failure, first_failure, last_output, rank_reports

_SHORT_S = 60.0
_NODE = re.compile(r"[A-Za-z0-9._-]{1,253}")
_OOM = re.compile(r"oom[-_ ]kill|out[- ]of[- ]memory handler", re.IGNORECASE)
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Decision:
    """What to do after an attempt.

    Attributes:
        step: the newest saved step after the attempt, 0 before the first.
        bad: faulty or suspected nodes of this attempt, and why.
        exclude: all nodes of this submit to exclude from now on.
        code: exit code of the job where it stops.
        suspect: the node on which it happened; excluded if it happens there again.
    """

    action: Action
    kind: FailureKind
    reason: str
    step: int = 0
    rank: int | None = None
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    code: int = 0
    suspect: str | None = None
    at: float = 0.0


def decide(stage: StagePaths, attempt: AttemptPaths, ends_at: float | None, nodes: tuple[str, ...]) -> Decision:
    """The restart decision for `attempt`, which has ended without a result.

    Args:
        ends_at: when the allocation ends, unix seconds; None where there is none.
        nodes: the allocation's nodes, to find those that did not respond to the preflight check.
    """
    earlier = [read_decision(one) for one in stage.all_attempts(attempt.submit) if one.restart < attempt.restart]
    past = [decision for decision in earlier if decision is not None]
    first = _first_look(stage, attempt, nodes)
    first = dataclasses.replace(first, step=_saved_step(stage), at=time.time())
    first = _with_suspect(first, past)
    left_out = tuple(dict.fromkeys(node for decision in past for node in decision.exclude))
    first = dataclasses.replace(first, exclude=tuple(dict.fromkeys((*left_out, *first.bad))))
    stopped = _stopped(first, past, _allowances(stage))
    if stopped is not None:
        return stopped
    if first.action is Action.AGAIN and ends_at is not None and ends_at - time.time() < _SHORT_S:
        return dataclasses.replace(first, action=Action.REQUEUE)
    return first


def _decision(kind: FailureKind, reason: str, **more: Any) -> Decision:
    """The policy for a kind of failure."""
    known = policy(kind)
    code = int(known.exit_code) if known.action is Action.STOP else 0
    return Decision(known.action, kind, reason, code=code, **more)


def _first_look(stage: StagePaths, attempt: AttemptPaths, nodes: tuple[str, ...]) -> Decision:
    """What happened in this attempt alone."""
    full = refused(stage.root)
    if full is not None:
        return _decision(FailureKind.DISK, full)
    reports = rank_reports(attempt)
    if not reports:
        checked = _preflight(attempt, nodes)
        if checked is not None:
            return checked
        said = last_output([*sorted(attempt.logs.glob("*.log")), *stage.batch_logs()])
        reason = f"no rank started; the log ends: {said}" if said else "no rank started"
        return _decision(FailureKind.NO_START, reason)
    failure = first_failure(reports)
    if failure is None:
        return _decision(FailureKind.ERROR, "every rank ended without an error, but none wrote result.json")
    if failure.kind is FailureKind.VANISHED and _oom_killed(stage):
        reason = f"{failure.reason}; it was killed by the node's out-of-memory handler"
        failure = Failure(failure.rank, FailureKind.MEMORY, reason)
    node = next((one.node for one in reports if one.rank == failure.rank and one.node), None)
    if failure.kind is FailureKind.HARDWARE and node is not None:
        return _decision(failure.kind, failure.reason, rank=failure.rank, bad={node: failure.reason})
    if failure.kind is FailureKind.HARDWARE:
        return Decision(Action.AGAIN, failure.kind, failure.reason, rank=failure.rank)
    suspect = node if policy(failure.kind).action is Action.AGAIN else None
    return _decision(failure.kind, failure.reason, rank=failure.rank, suspect=suspect)


def _preflight(attempt: AttemptPaths, nodes: tuple[str, ...]) -> Decision | None:
    """What the preflight check found, None if the ranks can start."""
    found = {path.stem: read_record(PreflightReport, path) for path in attempt.preflight.glob("*.json")}
    if not found:
        return None  # the check itself did not start: see the log
    reports = {node: report for node, report in sorted(found.items()) if report is not None}
    for node, report in reports.items():
        if report.result == "run":
            return _decision(FailureKind.DATA, f"{node}: {report.errors}")
    bad = {node: report.errors for node, report in reports.items() if report.result == "node"}
    bad |= {node: "did not respond to the preflight check" for node in nodes if node not in reports}
    if not bad:
        return None
    reason = "; ".join(f"{node}: {why}" for node, why in bad.items())
    if len(bad) == len(nodes) > 1:
        return _decision(FailureKind.BAD_NODES, f"every node failed the preflight check: {reason}")
    return _decision(FailureKind.PREFLIGHT, reason, bad=bad)


def _with_suspect(first: Decision, past: list[Decision]) -> Decision:
    """A node on which a rank vanished or hung is excluded the second time."""
    if first.suspect is None or not policy(first.kind).suspicious:
        return first
    if any(one.suspect == first.suspect and policy(one.kind).suspicious for one in past):
        reason = f"{first.reason}; not the first failure on {first.suspect}"
        return dataclasses.replace(first, action=Action.REQUEUE, reason=reason, bad={first.suspect: reason})
    return first


def _stopped(first: Decision, past: list[Decision], allowed: RecoverySpec) -> Decision | None:
    """The decision that ends the stage, None while it may continue."""
    if first.action is Action.STOP:
        return first

    def stop(kind: FailureKind, why: str) -> Decision:
        reason, code = f"{why}; the last: {first.reason}", int(policy(kind).exit_code)
        return dataclasses.replace(first, action=Action.STOP, kind=kind, reason=reason, code=code)

    if len(first.exclude) > allowed.max_bad_nodes:
        return stop(FailureKind.BAD_NODES, f"{len(first.exclude)} faulty nodes, more than recovery.max_bad_nodes")
    if policy(first.kind).free:
        return None
    costly = [one for one in [*past, first] if not policy(one.kind).free]
    if len(costly) > allowed.max_restarts:
        return stop(FailureKind.RESTARTS, f"failed {len(costly)} times, restarts exhausted (recovery.max_restarts)")
    idle = 0
    for one in reversed(costly):
        if one.step != first.step:
            break
        idle += 1
    # the first attempt to reach a step made progress; those after it made none
    reached_here = any(one.step < first.step for one in past) or (first.step > 0 and len(costly) == idle)
    if idle - int(reached_here) >= allowed.max_without_progress:
        return stop(FailureKind.NO_PROGRESS, f"{idle} attempts in a row saved no checkpoint after step {first.step}")
    return None


def _allowances(stage: StagePaths) -> RecoverySpec:
    written = (read_object(stage.spec) or {}).get("recovery") or {}
    try:
        return from_dict(RecoverySpec, written, ignore_unknown=True)
    except ValueError:
        return RecoverySpec()


def _saved_step(stage: StagePaths) -> int:
    """What an attempt has saved: the newest checkpoint's step, or the pieces of a corpus that are tokenised."""
    tokenizes = "corpus" in (read_object(stage.spec) or {})
    step = (read_object(stage.progress if tokenizes else stage.latest) or {}).get("step")
    return step if isinstance(step, int) else 0


def _oom_killed(stage: StagePaths) -> bool:
    """Whether the newest batch log reports that the kernel killed a process for its memory."""
    logs = stage.batch_logs()
    if not logs:
        return False
    with open_file(logs[-1]) as stream:
        stream.seek(max(0, logs[-1].stat().st_size - _TAIL_BYTES))
        return bool(_OOM.search(stream.read().decode(errors="replace")))


def read_decision(attempt: AttemptPaths) -> Decision | None:
    """What was decided after an attempt; None if nothing was: it is running, completed, or ended with its job."""
    raw = read_object(attempt.decision) or read_object(attempt.earlier_decision)
    if raw is None:
        return None
    try:
        return from_dict(Decision, {**raw, "kind": failure_kind(raw.get("kind"))}, ignore_unknown=True)
    except ValueError:
        return None


def write_decision(stage: StagePaths, attempt: AttemptPaths, decision: Decision) -> None:
    """Write it where status reads it, and one line of it for the shell."""
    write_json(attempt.decision, to_dict(decision))
    site = ((read_object(stage.run.record) or {}).get("site") or {}).get("name", "")
    attempt.bad_nodes.unlink(missing_ok=True)
    for node, reason in decision.bad.items():
        if _NODE.fullmatch(node) and policy(decision.kind).bad_node:
            fault = {"at": decision.at, "node": node, "site": site, "run": stage.run.name}
            append_line(attempt.bad_nodes, {**fault, "stage": stage.name, "reason": reason})
    detail = {Action.STOP: str(decision.code), Action.REQUEUE: ",".join(filter(_NODE.fullmatch, decision.bad))}
    write_text(attempt.decision_line, f"{decision.action} {detail.get(decision.action, '')}\n")


def main(stage_dir: str, attempt_name: str, ends_at: str, nodes: str) -> None:
    stage = StagePaths(Path(stage_dir))
    attempt = AttemptPaths(stage.attempts / attempt_name)
    decision = decide(stage, attempt, float(ends_at), tuple(nodes.split(",")))
    try:
        write_decision(stage, attempt, decision)
    except OSError as error:
        print(f"{attempt_name}: the decision cannot be written: {error}", flush=True)
    print(f"{attempt_name}: {decision.reason}; {decision.action}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])
