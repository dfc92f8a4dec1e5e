"""Printing: text, JSON, and progress while a run is active. What a print needs is imported only then."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from hpclm.planning import Plan
    from hpclm.runs.record import Run
    from hpclm.runs.status import RunStatus
    from hpclm.runs.submit import Prepared


def print_json(value: Any, indent: int | None = 2) -> None:
    from hpclm.core.files import finite

    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    typer.echo(json.dumps(finite(value), indent=indent, ensure_ascii=plain))


def print_findings(made: Plan, severities: tuple[str, ...]) -> None:
    for finding in made.findings:
        if finding.severity in severities:
            typer.echo(f"{finding.severity}: {finding}", err=True)


def print_dry_run(prepared: Prepared, as_json: bool) -> None:
    from hpclm.cli.tables import dry_run_lines
    from hpclm.planning import picture
    from hpclm.runs.submit import scripts

    made = scripts(prepared)
    if as_json:
        stages = [{"name": job.stage, "argv": script.argv, "script": script.text} for job, script in made]
        print_json(
            {
                "run": prepared.run,
                "path": str(prepared.paths.root),
                "plan": prepared.plan.to_dict(),
                "stages": stages,
                "problems": list(prepared.problems),
            }
        )
    else:
        typer.echo("\n".join(dry_run_lines(picture(prepared.plan), made, prepared.problems)))


def print_submitted(run: Run, stages: list[str], as_json: bool) -> None:
    ids = run.record.submits[-1].job_ids
    if as_json:
        jobs = [{"name": stage, "job_id": ids.get(stage)} for stage in stages]
        print_json({"run": run.record.run, "path": str(run.paths.root), "site": run.record.site.name, "stages": jobs})
        return
    where = ", ".join(f"{stage} (job {ids[stage]})" if stage in ids else stage for stage in stages)
    typer.echo(f"{run.record.run} in {run.paths.root}\nsubmitted to {run.record.site.name}: {where}")
    typer.echo(f"next: hpclm status {run.record.run} --watch, hpclm logs {run.record.run} -f")


def follow_shown(run: Run, quiet: bool) -> Iterable[RunStatus]:
    """Yield and show each status: redrawn on a terminal, one line per change elsewhere.
    Ctrl-C stops watching, not the run."""
    from hpclm.runs.status import follow

    try:
        if quiet:
            yield from follow(run)
        elif sys.stdout.isatty():
            yield from _follow_live(run)
        else:
            yield from _follow_plain(run)
    except KeyboardInterrupt:
        typer.echo(
            f"\nstopped following; {run.record.run} continues (`hpclm cancel {run.record.run}` ends it)", err=True
        )
        raise typer.Exit(130) from None


def _follow_live(run: Run) -> Iterable[RunStatus]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from hpclm.cli.tables import run_lines
    from hpclm.cli.terminal import raw_output
    from hpclm.core.secrets import masked
    from hpclm.core.terminal_text import printable
    from hpclm.runs.status import follow

    with Live(console=Console(file=raw_output()), refresh_per_second=4) as live:
        for one in follow(run):
            live.update(Text(printable(masked("\n".join(run_lines(one))))), refresh=True)
            yield one


def _follow_plain(run: Run) -> Iterable[RunStatus]:
    from hpclm.cli.tables import change, run_lines
    from hpclm.runs.status import follow

    before = ""
    for one in follow(run):
        line = change(one)
        if line != before:
            typer.echo(line)
        before = line
        if one.over:
            typer.echo("\n".join(run_lines(one)))
        yield one


def finish(statuses: Iterable[RunStatus], as_json: bool) -> None:
    """Follow a run to its end. Raises RunFailedError with the reason unless it completed."""
    from hpclm.core.errors import RunFailedError
    from hpclm.core.states import StageState

    *_, last = statuses
    if as_json:
        print_json(last.to_dict())
    if last.state is not StageState.COMPLETED:
        raise RunFailedError(f"run {last.run} ended {last.state}: {last.reason}")
