"""A sweep as a table, best first; and its collected results."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.errors import IncompleteError
from hpclm.core.files import write_json, write_text
from hpclm.core.registries import METRICS
from hpclm.core.stage_result import result_of
from hpclm.core.states import StageState
from hpclm.metrics import larger_is_better
from hpclm.runs.collect import collect
from hpclm.runs.record import Run
from hpclm.runs.status import RunStatus, scores_in, status_of
from hpclm.runs.sweep import Sweep


@dataclass(frozen=True)
class Row:
    """One member: its settings, its state, and its metric (None before there is one)."""

    run: str
    settings: dict[str, str]
    state: StageState
    reason: str
    step: str
    loss: float | None
    metric: float | None


@dataclass(frozen=True)
class SweepStatus:
    """A sweep: its members best first, those without a metric after."""

    sweep: Sweep
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Row | None:
        return self.rows[0] if self.rows and self.rows[0].metric is not None else None

    @property
    def counts(self) -> dict[StageState, int]:
        states = [row.state for row in self.rows]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def to_dict(self) -> dict[str, Any]:
        rows = [dict(vars(row)) for row in self.rows]
        best = self.best.run if self.best else None
        return {"sweep": self.sweep.name, "metric": self.sweep.record.metric, "best": best, "members": rows}


def sweep_status(sweep: Sweep, metric: str | None = None) -> SweepStatus:
    """The status of every member: one query to the scheduler for all of them."""
    runs = {run.record.run: run for run in sweep.runs()}
    found = {one.run: one for one in status_of(runs.values())}
    name = METRICS.canonical(metric or sweep.record.metric)
    rows = [_row(member.run, member.settings, runs.get(member.run), found, name) for member in sweep.record.members]
    sign = -1 if larger_is_better(name) else 1
    rows.sort(key=lambda row: (row.metric is None, sign * (row.metric or 0.0)))
    warnings = tuple(dict.fromkeys(warning for one in found.values() for warning in one.warnings))
    return SweepStatus(sweep, tuple(rows), warnings)


def _row(name: str, settings: dict[str, str], run: Run | None, found: dict[str, RunStatus], metric: str) -> Row:
    if run is None:
        return Row(name, settings, StageState.UNKNOWN, "was not written: the submit was interrupted", "", None, None)
    status = found[name]
    current = next((stage for stage in status.stages if stage.state is not StageState.COMPLETED), status.stages[-1])
    step = "" if current.step is None else f"{current.step}/{current.total_steps or '?'}"
    losses = [stage.loss for stage in status.stages if stage.loss is not None]
    loss = losses[-1] if losses else None
    return Row(name, settings, status.state, status.reason, step, loss, _metric(run, status, metric))


def _metric(run: Run, status: RunStatus, name: str) -> float | None:
    """The newest value: `best_val_loss` of the last training stage for val_loss, the mean over tasks of a score."""
    for stage in reversed(status.stages):
        result = result_of(run.paths.stage(stage.name)) or {}
        scores = [
            value for one in (scores_in(result) or {}).values() if (value := _as_number(one.get(name))) is not None
        ]
        if scores:
            return sum(scores) / len(scores)
        if name == "val_loss":
            value = result.get("best_val_loss", result.get("val_loss"))
            value = value if value is not None else stage.val_loss
        else:
            metrics = result.get("val_metrics")
            value = {**result, **(metrics if isinstance(metrics, dict) else {})}.get(name)
        if (found := _as_number(value)) is not None:
            return found
    return None


def _as_number(value: object) -> float | None:
    """A number of a result; None for anything else."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def collect_sweep(sweep: Sweep, out: Path | None = None, metric: str | None = None) -> tuple[Path, SweepStatus]:
    """Collect every complete member and write sweep.csv and summary.json; returns the folder.

    Raises IncompleteError where no member is complete; the others are listed in the table.
    """
    status = sweep_status(sweep, metric)
    complete = [row for row in status.rows if row.state is StageState.COMPLETED]
    if not complete:
        states = ", ".join(f"{count} {state}" for state, count in status.counts.items())
        raise IncompleteError(f"sweep {sweep.name}: no member is complete ({states})")
    runs = {run.record.run: run for run in sweep.runs()}
    for row in complete:
        collect(runs[row.run])
    folder = (out or sweep.paths.results).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "sweep.csv", _csv(status))
    write_json(folder / "summary.json", status.to_dict())
    return folder, status


def _csv(status: SweepStatus) -> str:
    stream = io.StringIO()
    keys = [axis.key for axis in status.sweep.record.axes]
    writer = csv.writer(stream)
    writer.writerow(["run", *keys, "state", status.sweep.record.metric, "loss"])
    for row in status.rows:
        writer.writerow([row.run, *(row.settings.get(key) for key in keys), row.state, row.metric, row.loss])
    return stream.getvalue()
