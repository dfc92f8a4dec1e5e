"""What the commands do for a sweep."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hpclm.cli.output import print_findings, print_json

if TYPE_CHECKING:
    from hpclm.core.sweep_layout import SweepPaths
    from hpclm.runs.submit import Request
    from hpclm.runs.sweep import Sweep
    from hpclm.runs.sweep_results import SweepStatus

_FOLLOW_S = 2.0


def submit_sweep(
    request: Request,
    texts: list[str],
    max_running: int | None,
    metric: str | None,
    *,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """`submit --sweep`: plan all, then start them."""
    from hpclm.runs import sweep as sweeping

    axes = [sweeping.parse_axis(text) for text in texts]
    sweep, made = sweeping.prepare_sweep(request, axes, max_running=max_running, metric=metric)
    print_findings(made[0].plan, ("warning",))
    if dry_run:
        settings = [{"run": member.run, "settings": member.settings} for member in sweep.record.members]
        problems = sorted({problem for one in made for problem in one.problems})
        if as_json:
            print_json({"sweep": sweep.name, "metric": sweep.record.metric, "members": settings, "problems": problems})
            return
        for one in settings:
            typer.echo(f"{one['run']}  {one['settings']}")
        typer.echo(f"dry run: nothing was submitted; {len(settings)} runs, compared by {sweep.record.metric}")
        for problem in problems:
            typer.echo(f"a submit would be refused: {problem}")
        return
    sweeping.submit_sweep(sweep, made, lambda line: typer.echo(line, err=True))
    if not as_json:
        typer.echo(f"{sweep.name}: {len(made)} runs in {sweep.paths.root}\nnext: hpclm status {sweep.name}")
    if wait:
        _follow(sweep.paths)
    if as_json:
        from hpclm.runs.sweep_results import sweep_status

        print_json(sweep_status(sweep).to_dict())


def _follow(paths: SweepPaths) -> None:
    from hpclm.core.errors import RunFailedError
    from hpclm.core.states import StageState
    from hpclm.runs.sweep import read_sweep
    from hpclm.runs.sweep_results import sweep_status

    before = ""
    while True:
        status = sweep_status(read_sweep(paths))
        line = ", ".join(f"{count} {state}" for state, count in status.counts.items())
        if line != before:
            typer.echo(line, err=True)
        before = line
        if all(state.is_over for state in status.counts):
            break
        time.sleep(_FOLLOW_S)
    if set(status.counts) != {StageState.COMPLETED}:
        raise RunFailedError(f"sweep {status.sweep.name}: {line}")


def sweep_statuses(folder: Path, limit: int) -> list[SweepStatus]:
    """The newest sweeps of a folder; `limit` 0: all."""
    from hpclm.runs.sweep import all_sweeps
    from hpclm.runs.sweep_results import sweep_status

    sweeps = all_sweeps(folder)
    return [sweep_status(sweep) for sweep in (sweeps[-limit:] if limit else sweeps)]


def show_sweep(sweep: Sweep, metric: str | None, *, as_json: bool) -> None:
    """`status SWEEP`."""
    from hpclm.cli.tables import sweep_lines
    from hpclm.runs.sweep_results import sweep_status

    status = sweep_status(sweep, metric)
    if as_json:
        print_json(status.to_dict())
    else:
        typer.echo("\n".join(sweep_lines(status)))


def gather_sweep(sweep: Sweep, out: Path | None, metric: str | None, *, as_json: bool) -> None:
    """`collect SWEEP`."""
    from hpclm.cli.tables import sweep_lines
    from hpclm.runs.sweep_results import collect_sweep

    gathered, status = collect_sweep(sweep, out, metric)
    if as_json:
        print_json({"folder": str(gathered), **status.to_dict()})
        return
    typer.echo("\n".join(sweep_lines(status)))
    best = status.best
    if best is not None:
        settings = ", ".join(f"{key}={value}" for key, value in best.settings.items())
        typer.echo(f"best: {best.run} ({settings})")
    typer.echo(f"gathered in {gathered}")


def cancel_sweep(sweep: Sweep) -> None:
    """`cancel SWEEP`: every member that has not ended."""
    from hpclm.runs.cancel import cancel_all

    # later members first: none starts in the place of one that was cancelled
    ended = [stages for stages in cancel_all(sweep.runs()[::-1]) if stages]
    total = len(sweep.record.members)
    typer.echo(f"{sweep.name}: cancelled {len(ended)} of {total} runs" if ended else "already over")


def resume_sweep(sweep: Sweep) -> None:
    """`resume SWEEP`: every member that has ended without completing, each as a separate run."""
    from hpclm.core.states import StageState
    from hpclm.runs.resume import resume
    from hpclm.runs.status import status_of

    runs = sweep.runs()
    states = zip(runs, status_of(runs), strict=True)
    again = [run for run, status in states if status.over and status.state is not StageState.COMPLETED]
    for run in again:
        resume(run)
        typer.echo(f"{run.record.run}: submitted again")
    if not again:
        typer.echo(f"{sweep.name}: nothing to resume")
