"""Text output: aligned, without colours or boxes, so that a pipe gets the same as a terminal. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpclm.core.clock import clock
from hpclm.core.layout import StagePaths

if TYPE_CHECKING:
    from hpclm.data.instructions.instruction_check import InstructionCheck
    from hpclm.planning.row_report import RowCheck
    from hpclm.recovery.bad_nodes import Fault
    from hpclm.runs.collect import Collected
    from hpclm.runs.comparison import Comparison
    from hpclm.runs.status import RunStatus, StageStatus
    from hpclm.runs.sweep_results import SweepStatus
    from hpclm.schedulers.interface import JobScript
    from hpclm.schedulers.jobs import StageJob

_HISTORY_LINES = 6
_SHOWN_ROWS = 10
_LONGEST_LINE = 110
_HEADINGS = ("stage", "state", "step", "loss", "val loss", "tokens/s", "left", "job")


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Columns as wide as their widest cell; columns with only a heading are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(cell for cell in column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        lines.append((indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip())
    return lines


def run_lines(status: RunStatus) -> list[str]:
    """A run as a block: its name and state, its stages, and their reasons."""
    when = clock("%Y-%m-%d %H:%M", status.created_at)
    lines = [f"{status.run}  {status.state}  on {status.site}, submitted {when}"]
    lines += table([_HEADINGS, *(_stage_cells(stage) for stage in status.stages)])
    lines += [line for stage in status.stages for line in _history(stage)]
    lines += [f"  {stage.name}: {stage.reason}" for stage in status.stages if stage.reason]
    lines += [f"  {stage.name}: {task} {_scores(one)}" for stage in status.stages for task, one in _scored(stage)]
    lines += [f"  warning: {warning}" for warning in status.warnings]
    return lines


def comparison_lines(found: Comparison) -> list[str]:
    """A column an evaluation, a line a metric; then rows with every answer."""
    stages = list(found.scores)
    metrics = list(dict.fromkeys(metric for one in found.scores.values() for metric in one))
    rows = [[metric, *(_number(found.scores[stage].get(metric)) for stage in stages)] for metric in metrics]
    lines = table([["", *stages], *rows], indent="")
    width = max(map(len, [*stages, "answer"]))
    for one in found.examples:
        lines += ["", f"{'prompt':{width}}  {_one_line(one.prompt)}"]
        lines += [f"{'answer':{width}}  {_one_line(one.answer)}"] if one.answer is not None else []
        lines += [f"{stage:{width}}  {_one_line(text)}" for stage, text in one.said.items()]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    """What fits on a line, its end where it is too long: a prompt's question stands there."""
    shown = " ".join(text.split())
    return shown if len(shown) <= _LONGEST_LINE else "…" + shown[1 - _LONGEST_LINE :]


def _history(stage: StageStatus) -> list[str]:
    """The newest entries of a stage's attempt history."""
    hidden = len(stage.history) - _HISTORY_LINES
    lines = [f"  {stage.name}: ({hidden} earlier attempts not shown)"] if hidden > 0 else []
    for at, sentence in stage.history[-_HISTORY_LINES:]:
        lines.append(f"  {stage.name}: {clock('%H:%M:%S', at)} {sentence}")
    return lines


def _stage_cells(stage: StageStatus) -> list[str]:
    state = stage.state if stage.phase in (None, "training") else f"{stage.state} ({stage.phase})"
    step = "" if stage.step is None else f"{stage.step}/{'?' if stage.total_steps is None else stage.total_steps}"
    return [
        stage.name,
        state,
        step,
        figure(stage.loss),
        figure(stage.val_loss),
        "" if stage.tokens_per_s is None else f"{stage.tokens_per_s:,.0f}",
        duration(stage.seconds_left),
        stage.job_id or "",
    ]


def _scored(stage: StageStatus) -> list[tuple[str, dict[str, Any]]]:
    return list((stage.scores or {}).items())


def _scores(one: dict[str, Any]) -> str:
    return ", ".join(f"{key} {figure(value)}" for key, value in one.items())


def figure(value: Any) -> str:
    """A number with four digits; empty if unknown."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """`1:02:03` or `2:03`."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def change(status: RunStatus) -> str:
    """A run on one line, for following without a terminal: printed when it differs from the line before."""
    parts = []
    for stage in status.stages:
        step = (
            f" {stage.step}/{stage.total_steps or '?'}" if stage.state == "running" and stage.step is not None else ""
        )
        loss = f" loss {figure(stage.loss)}" if stage.state == "running" and stage.loss is not None else ""
        parts.append(f"{stage.name} {stage.state}{step}{loss}")
    return "; ".join(parts)


def dry_run_lines(picture: str, scripts: Sequence[tuple[StageJob, JobScript]], problems: Sequence[str]) -> list[str]:
    """The plan, and each stage's script as it would be submitted."""
    lines = [picture.rstrip()]
    for job, script in scripts:
        lines += ["", f"# ---- stage {job.stage}: {StagePaths(Path(job.stage_dir)).script} ----"]
        if script.argv:
            lines.append(f"# {' '.join(script.argv)}")
        lines.append(script.text.rstrip())
    lines += ["", "dry run: nothing was submitted"]
    lines += [f"a submit would be refused: {problem}" for problem in problems]
    return lines


def sweep_lines(status: SweepStatus) -> list[str]:
    """A sweep as a table, best first."""
    sweep = status.sweep
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items())
    lines = [f"{sweep.name}  {len(sweep.record.members)} runs: {counts}; by {sweep.record.metric}"]
    keys = [axis.key for axis in sweep.record.axes]
    rows = [["run", *keys, "state", "step", "loss", sweep.record.metric]]
    for row in status.rows:
        settings = [row.settings.get(key, "") for key in keys]
        rows.append([row.run.rpartition(".")[2], *settings, row.state, row.step, figure(row.loss), figure(row.metric)])
    lines += table(rows)
    reasons = dict.fromkeys(
        row.reason for row in status.rows if row.reason and row.state not in ("completed", "pending")
    )
    return [*lines, *(f"  {reason}" for reason in reasons), *(f"  warning: {warning}" for warning in status.warnings)]


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """Faulty nodes, newest last."""
    rows = [["node", "site", "when", "run", "reason"]]
    for fault in faults:
        when = clock("%Y-%m-%d %H:%M", fault.at)
        rows.append([fault.node, fault.site, when, fault.run, fault.reason])
    return table(rows, indent="") if faults else []


def collected_lines(collected: Collected) -> list[str]:
    """Where the results are, and the scores."""
    lines = [f"{collected.summary['run']}: gathered in {collected.folder}"]
    if collected.pred_file is not None:
        lines.append(f"predictions: {collected.pred_file}")
    for task, one in (collected.summary["scores"] or {}).items():
        lines.append(f"{task}: {_scores(one)}")
    return lines


def row_check_lines(found: RowCheck) -> list[str]:
    """Rows of a stage and role: counts, lengths, and examples as the model sees them."""
    counts = f"{found.rows} rows, {found.truncated} truncated, {len(found.left_out)} left out"
    lengths = ", ".join(f"{name} {count}" for name, count in found.lengths.items())
    lines = [f"{found.stage} {found.role}: {counts}", f"  tokens: {lengths} (limit {found.limit})"]
    if found.left_out:
        first = ", ".join(str(place + 1) for place in found.left_out[:_SHOWN_ROWS])
        lines.append(f"  left out: row {first}" + (", …" if len(found.left_out) > _SHOWN_ROWS else ""))
    for text in found.shown:
        lines += ["  |" + line for line in text.split("\n")] + ["  +"]
    return lines


_FILE_COLUMNS = ("rows", "kept", "tokens", "learned", "longest", "cut", "too_long", "without_label", "joined")


def instruction_check_lines(found: InstructionCheck) -> list[str]:
    """Rows of instructions: counts of each file, the samples that packing makes, and rows as the model sees them."""
    how = f"template {found.template}, learn {found.learn}, at most {found.limit} tokens"
    lines = [f"{found.stage} {found.role}: {sum(one.rows for one in found.files)} rows, {how}"]
    cells = [[one.path, *(str(getattr(one, key) or "") for key in _FILE_COLUMNS)] for one in found.files]
    lines += table([["file", *(key.replace("_", " ") for key in _FILE_COLUMNS)], *cells])
    kept, tokens = sum(one.kept for one in found.files), sum(one.tokens for one in found.files)
    if found.samples is not None and found.samples:
        filled = f"{tokens / found.samples / found.limit:.0%} full"
        lines.append(f"  packing: {kept} rows in {found.samples} samples of {found.limit} tokens, {filled}")
    if found.role != "test":
        ended, padding = sum(one.ended for one in found.files), found.padding or "none"
        lines.append(
            f"  end token {found.end}: learned in {ended} of {kept} rows; pad token {padding}: nothing is padded"
        )
        if kept and not ended:
            lines.append("  warning: the model does not learn where to stop; end answers with it in the chat template")
    examples = [place for one in found.files for place in one.examples]
    if examples:
        lines.append(f"  left out, for example: {', '.join(examples[:_SHOWN_ROWS])}")
    for row in found.shown:
        counts = f"{row.tokens} tokens" + (f", {row.learned} learned" if row.learned else "")
        lines.append(f"  {row.where}: {counts}" + (f" ({row.note})" if row.note else ""))
        lines += ["  |" + _shown(line) for line in row.text.split("\n")] + ["  +"]
    return lines


def _shown(line: str) -> str:
    """A line of a row, with what a terminal would act on written out."""
    return "".join(repr(one)[1:-1] if unicodedata.category(one) == "Cc" and one != "\t" else one for one in line)


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:
        return "a number of thousands of digits"


def held_lines(found: dict[str, Any]) -> list[str]:
    """Facts about a model or prompts, and their tensors."""
    lines = [found["kind"]]
    for key, value in found["facts"].items():
        for name, item in value.items() if isinstance(value, dict) else [(key, value)]:
            if item not in (None, [], {}):
                lines.append(f"  {name}: {_text(item)}")
    rows = [
        ["tensor", "dtype", "shape"],
        *([name, dtype, " × ".join(map(_text, shape))] for name, dtype, shape in found["tensors"]),
    ]
    return [*lines, *table(rows)]
