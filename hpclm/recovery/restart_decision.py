"""After an attempt that left no result: start the ranks again here, be requeued, or stop, and why.

    python -m hpclm.recovery.restart_decision STAGE_DIR ATTEMPT ENDS_AT NODES

is a step of the job, run inside the image once the ranks are gone (`launch/supervise.sh`); the local supervisor calls
`decide` itself. It writes `verdict.json`, `verdict` (one line for the shell: `again`, `requeue NODES,…` or `stop CODE`)
and `bad-nodes` into the attempt. Standard library only.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.files import append_line, read_object, write_json, write_text
from hpclm.core.layout import AttemptPaths, RunPaths, StagePaths
from hpclm.recovery.rank_failures import Failure, first_failure, last_words, rank_records

# Exit codes of a job that is not to be tried again; documented in docs/recovery.md.
STOP_CODES = {
    "error": 1,
    "data": 10,
    "memory": 11,
    "limit": 30,
    "restarts": 41,
    "no-progress": 42,
    "bad-nodes": 44,
}
# The same program on the same input would fail the same way.
_REPEATS = ("data", "memory", "error")
# Not the run's fault: these cost nothing of what the recipe allows.
_FREE = ("signal", "preflight")
# Done twice on one node, these make the node the suspect.
_SUSPICIOUS = ("vanished", "stall")
# What goes into the ledger: a node that failed a check or whose device broke, not one that was only near.
_PROVEN = ("preflight", "hardware")
_SHORT_S = 60.0
_NODE = re.compile(r"[A-Za-z0-9._-]{1,253}")
_OOM = re.compile(r"oom[-_ ]kill|out[- ]of[- ]memory handler", re.IGNORECASE)
_DEFAULTS = {"max_restarts": 10, "max_without_progress": 3, "max_bad_nodes": 4}


@dataclass(frozen=True)
class Verdict:
    """What to do after an attempt.

    Attributes:
        action: again (here), requeue, or stop.
        kind: what happened: error, data, memory, vanished, stall, hardware, storage, peer-lost, no-meeting, no-start,
            signal (told to stop), preflight; or why it stops: restarts, no-progress, bad-nodes, limit.
        step: the newest saved step after the attempt, 0 before the first.
        bad: nodes found at fault, or suspected, in this attempt, and why.
        exclude: nodes to leave out from now on, all of this submit's.
        code: exit code of the job where it stops.
    """

    action: str
    kind: str
    reason: str
    step: int = 0
    rank: int | None = None
    bad: dict[str, str] = dataclasses.field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    code: int = 0
    suspect: str | None = None
    at: float = 0.0


def decide(stage: StagePaths, attempt: AttemptPaths, ends_at: float | None, nodes: tuple[str, ...]) -> Verdict:
    """The verdict on `attempt`, which has ended without a result.

    Args:
        ends_at: when the allocation ends, unix seconds; None where there is none.
        nodes: the allocation's, for those that did not answer the check before the start.
    """
    earlier = [read_verdict(one) for one in stage.all_attempts(attempt.submit) if one.restart < attempt.restart]
    past = [verdict for verdict in earlier if verdict is not None]
    first = _first_look(stage, attempt, nodes)
    first = dataclasses.replace(first, step=_saved_step(stage), at=time.time())
    first = _suspect(first, attempt, past)
    left_out = tuple(dict.fromkeys(node for verdict in past for node in verdict.exclude))
    first = dataclasses.replace(first, exclude=tuple(dict.fromkeys((*left_out, *first.bad))))
    allowed = _allowances(stage)
    stopped = _stopped(first, past, allowed)
    if stopped is not None:
        return stopped
    if first.action == "again" and ends_at is not None and ends_at - time.time() < _SHORT_S:
        return dataclasses.replace(first, action="requeue")
    return first


def _first_look(stage: StagePaths, attempt: AttemptPaths, nodes: tuple[str, ...]) -> Verdict:
    """What happened in this attempt alone."""
    records = rank_records(attempt)
    if not records:
        checked = _preflight(attempt, nodes)
        if checked is not None:
            return checked
        words = last_words([*sorted(attempt.logs.glob("*.log")), *sorted(stage.slurm.glob("*_batch.log"))])
        return Verdict("again", "no-start", f"no rank started; the log ends: {words}" if words else "no rank started")
    failure = first_failure(records)
    if failure is None:
        return Verdict("stop", "error", "every rank ended without an error, but none wrote result.json", code=1)
    if failure.kind == "vanished" and _oom_killed(stage):
        reason = f"{failure.reason}; the node's out-of-memory handler ended it"
        failure = Failure(failure.rank, "memory", reason)
    if failure.kind in _REPEATS:
        return Verdict("stop", failure.kind, failure.reason, rank=failure.rank, code=STOP_CODES[failure.kind])
    if failure.kind == "signal":
        return Verdict("requeue", "signal", failure.reason, rank=failure.rank)
    node = next((str(one["node"]) for one in records if one["rank"] == failure.rank and one.get("node")), None)
    if failure.kind == "hardware" and node is not None:
        return Verdict("requeue", "hardware", failure.reason, rank=failure.rank, bad={node: failure.reason})
    return Verdict("again", failure.kind, failure.reason, rank=failure.rank, suspect=node)


def _preflight(attempt: AttemptPaths, nodes: tuple[str, ...]) -> Verdict | None:
    """What the check before the start found, None when nothing speaks against a start."""
    found = {path.stem: read_object(path) or {} for path in attempt.preflight.glob("*.json")}
    if not found:
        return None  # the check itself did not start: the log says why
    for node, report in sorted(found.items()):
        if report.get("verdict") == "run":
            reason = f"{node}: {_faults(report)}"
            return Verdict("stop", "data", reason, code=STOP_CODES["data"])
    bad = {node: _faults(report) for node, report in sorted(found.items()) if report.get("verdict") == "node"}
    bad |= {node: "did not answer the check before the start" for node in nodes if node not in found}
    if not bad:
        return None
    reason = "; ".join(f"{node}: {why}" for node, why in bad.items())
    if len(bad) == len(nodes) > 1:
        return Verdict("stop", "bad-nodes", f"every node failed the check: {reason}", code=STOP_CODES["bad-nodes"])
    return Verdict("requeue", "preflight", reason, bad=bad)


def _faults(report: dict[str, Any]) -> str:
    errors = [one for one in report.get("findings", []) if isinstance(one, dict) and one.get("severity") == "error"]
    return "; ".join(str(one.get("message", "")) for one in errors) or "failed the check before the start"


def _suspect(first: Verdict, attempt: AttemptPaths, past: list[Verdict]) -> Verdict:
    """A node on which a rank vanished or hung before is left out the second time."""
    if first.suspect is None or first.kind not in _SUSPICIOUS:
        return first
    if any(one.suspect == first.suspect and one.kind in _SUSPICIOUS for one in past):
        reason = f"{first.reason}; not the first time on {first.suspect}"
        return dataclasses.replace(first, action="requeue", reason=reason, bad={first.suspect: reason})
    return first


def _stopped(first: Verdict, past: list[Verdict], allowed: dict[str, int]) -> Verdict | None:
    """The verdict that ends the stage, None while it may go on."""
    if first.action == "stop":
        return first

    def stop(kind: str, why: str) -> Verdict:
        reason = f"{why}; the last: {first.reason}"
        return dataclasses.replace(first, action="stop", kind=kind, reason=reason, code=STOP_CODES[kind])

    if len(first.exclude) > allowed["max_bad_nodes"]:
        return stop("bad-nodes", f"{len(first.exclude)} nodes at fault, recovery.max_bad_nodes is exceeded")
    if first.kind in _FREE:
        return None
    costly = [one for one in [*past, first] if one.kind not in _FREE]
    if len(costly) > allowed["max_restarts"]:
        return stop("restarts", f"failed {len(costly)} times, recovery.max_restarts is used up")
    idle = 0
    for one in reversed(costly):
        if one.step != first.step:
            break
        idle += 1
    # the first attempt to reach a step made progress; those after it made none
    reached_here = any(one.step < first.step for one in past) or (first.step > 0 and len(costly) == idle)
    if idle - int(reached_here) >= allowed["max_without_progress"]:
        return stop("no-progress", f"{idle} attempts in a row saved nothing past step {first.step}")
    return None


def _allowances(stage: StagePaths) -> dict[str, int]:
    written = (read_object(stage.spec) or {}).get("recovery") or {}
    return {key: int(written.get(key, default)) for key, default in _DEFAULTS.items()}


def _saved_step(stage: StagePaths) -> int:
    step = (read_object(stage.latest) or {}).get("step")
    return step if isinstance(step, int) else 0


def _oom_killed(stage: StagePaths) -> bool:
    """Whether Slurm wrote into the newest batch log that the kernel ended something for its memory."""
    logs = sorted(stage.slurm.glob("*_batch.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return False
    with logs[-1].open("rb") as stream:
        stream.seek(max(0, logs[-1].stat().st_size - 8192))
        return bool(_OOM.search(stream.read().decode(errors="replace")))


def read_verdict(attempt: AttemptPaths) -> Verdict | None:
    """What was decided after an attempt, None where nothing was: it goes on, ended well, or died with its job."""
    raw = read_object(attempt.verdict)
    if raw is None:
        return None
    known = {field.name for field in dataclasses.fields(Verdict)}
    values = {key: value for key, value in raw.items() if key in known}
    return Verdict(**{**values, "exclude": tuple(values.get("exclude", ()))})


def write_verdict(stage: StagePaths, attempt: AttemptPaths, verdict: Verdict) -> None:
    """Leave it where status looks for it, and a line of it for the shell."""
    write_json(attempt.verdict, dataclasses.asdict(verdict))
    site = ((read_object(RunPaths(stage.root.parent.parent).record) or {}).get("site") or {}).get("name", "")
    attempt.bad_nodes.unlink(missing_ok=True)
    for node, reason in verdict.bad.items():
        if _NODE.fullmatch(node) and verdict.kind in _PROVEN:
            fault = {"at": verdict.at, "node": node, "site": site, "run": stage.root.parent.parent.name}
            append_line(attempt.bad_nodes, {**fault, "stage": stage.name, "reason": reason})
    detail = {"stop": str(verdict.code), "requeue": ",".join(filter(_NODE.fullmatch, verdict.bad))}
    write_text(attempt.verdict_line, f"{verdict.action} {detail.get(verdict.action, '')}\n")


def main(stage_dir: str, attempt_name: str, ends_at: str, nodes: str) -> None:
    stage = StagePaths(Path(stage_dir))
    attempt = AttemptPaths(stage.attempts / attempt_name)
    verdict = decide(stage, attempt, float(ends_at), tuple(nodes.split(",")))
    write_verdict(stage, attempt, verdict)
    print(f"{attempt_name}: {verdict.reason}; {verdict.action}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])
