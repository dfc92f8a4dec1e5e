"""Commands: each calls the package and prints the result. What a command needs is imported only when it runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

import hpclm
from hpclm.cli.corpus_commands import inspect_data, merge_data, tokenize
from hpclm.cli.data_commands import data_app
from hpclm.cli.doctor_command import doctor
from hpclm.cli.generate_command import generate
from hpclm.cli.guard import guarded
from hpclm.cli.model_commands import model_app
from hpclm.cli.output import (
    finish,
    follow_shown,
    print_dry_run,
    print_findings,
    print_json,
    print_submitted,
)
from hpclm.cli.recipe_commands import recipe_app
from hpclm.cli.resume_command import resume
from hpclm.cli.row_generation_command import generate_rows
from hpclm.cli.score_command import evaluate_app
from hpclm.cli.site_commands import site_app
from hpclm.cli.sweep_commands import cancel_sweep, gather_sweep, show_sweep, submit_sweep, sweep_statuses
from hpclm.cli.terminal import raw_output
from hpclm.cli.track_command import track

# rich would be imported for help and tracebacks alone, and takes longer than everything else.
app = typer.Typer(
    help="From a recipe to trained prompts, checkpoints and predictions: on this machine, or on a Slurm cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
image_app = typer.Typer(help="Images.", no_args_is_help=True, rich_markup_mode=None)
data_app.command()(tokenize)
data_app.command("inspect")(inspect_data)
data_app.command("merge")(merge_data)
data_app.command("generate")(generate_rows)
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(image_app, name="image")
app.add_typer(model_app, name="model")
app.add_typer(recipe_app, name="recipe")
app.add_typer(site_app, name="site")

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
RunArgument = Annotated[
    str | None,
    typer.Argument(help="Run id, a unique prefix of one, or a path; default: the latest run.", show_default=False),
]
NodesOption = Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes to use.")]
DevicesOption = Annotated[int | None, typer.Option("--devices-per-node", min=1, help="Devices (ranks) per node.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a value: KEY.KEY=VALUE.")]
SetArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="The same as --set; as on Hydra's command line, +KEY=VALUE adds a key and ~KEY removes one.",
        show_default=False,
    ),
]
SiteOption = Annotated[
    str, typer.Option("--site", envvar="HPCLM_SITE", help="local, slurm, or the name or path of a site profile.")
]
RunsOption = Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MetricOption = Annotated[str | None, typer.Option("--metric", help="Metric by which the runs of a sweep are compared.")]
StageOption = Annotated[str | None, typer.Option("--stage", help="Name of the stage.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; accepted anywhere.")] = False,
) -> None:
    if version:
        typer.echo(hpclm.__version__)
        raise typer.Exit


@app.command()
def submit(
    recipe: RecipeArgument,
    assignments: SetArguments = None,
    nodes: NodesOption = None,
    devices_per_node: DevicesOption = None,
    overrides: SetOption = None,
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; default: the recipe's name.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and job scripts; submit nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run ends and exit with its exit code.")] = False,
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", help="KEY=VALUE,VALUE: one run per value; repeat for a grid.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option("--max-running", min=1, help="Runs of a sweep at the same time.")
    ] = None,
    metric: MetricOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan, check and start a run, or with --sweep many of them."""
    from hpclm.runs import submit as submitting

    request = submitting.Request(
        recipe, (*(overrides or ()), *(assignments or ())), nodes, devices_per_node, site, runs_dir, name
    )
    if sweep:
        submit_sweep(request, sweep, max_running, metric, dry_run=dry_run, wait=wait, as_json=as_json)
        return
    prepared = submitting.Preparer(site, runs_dir).prepare(request)
    print_findings(prepared.plan, ("warning",))
    for note in prepared.notes:
        typer.echo(f"note: {note}", err=True)
    if dry_run:
        print_dry_run(prepared, as_json)
        submitting.refuse_errors(prepared.plan)
        return
    run = submitting.submit(prepared, lambda line: typer.echo(line, err=True))
    if wait:
        if not as_json:
            typer.echo(f"{run.record.run} in {run.paths.root}")
        finish(follow_shown(run, quiet=as_json), as_json)
        return
    print_submitted(run, list(run.record.submits[-1].stages), as_json)


@app.command()
def plan(
    recipe: RecipeArgument,
    assignments: SetArguments = None,
    nodes: NodesOption = None,
    devices_per_node: DevicesOption = None,
    overrides: SetOption = None,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Also run the engine's code without devices or memory, to see what it holds."),
    ] = False,
    rank: Annotated[
        str | None, typer.Option("--rank", help="With --trace: a rank, or worst (default): one of each pipeline stage.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which rank runs what on which node, and everything the checks found."""
    from hpclm.cli import traces
    from hpclm.planning import make_plan, picture
    from hpclm.recipe import load
    from hpclm.runs.submit import refuse_errors

    changes = [*(overrides or ()), *(assignments or ())]
    if rank is not None and not trace:
        raise typer.BadParameter("only with --trace", param_hint="--rank")
    made = make_plan(load(recipe, changes, nodes=nodes, devices_per_node=devices_per_node))
    found = traces.traced(made, rank or "worst") if trace else []
    if as_json:
        print_json(made.to_dict() | ({"trace": traces.trace_json(found)} if trace else {}))
    else:
        typer.echo(picture(made).rstrip())
        for line in traces.trace_lines(found, rank or "worst"):
            typer.echo(line)
        print_findings(made, ("warning", "info"))
    refuse_errors(made)
    traces.refuse_failed(found)


@app.command()
def status(
    run: RunArgument = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the run is over.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Number of newest runs to show; 0: all.")] = 20,
    metric: MetricOption = None,
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the status of all runs, of one run, or of a sweep as a table."""
    from hpclm.runs.listing import Listing, newest
    from hpclm.runs.lookup import find
    from hpclm.runs.record import Run
    from hpclm.runs.status import status_of

    folder = _folder(runs_dir, site)
    named = find(folder, run) if run is not None or watch else None
    if named is not None and not isinstance(named, Run):
        show_sweep(named, metric, as_json=as_json)
        return
    if watch and named is not None:
        for one in follow_shown(named, quiet=as_json):
            if as_json:
                print_json(one.to_dict(), indent=None)
        return
    listed = newest(folder, limit) if named is None else Listing(status_of([named]), [], 0)
    for trouble in listed.unreadable:
        typer.echo(f"warning: {trouble}", err=True)
    sweeps = sweep_statuses(folder, limit) if run is None else []
    if as_json:
        runs = {"runs": [one.to_dict() for one in listed.runs]}
        print_json(runs | ({"sweeps": [one.to_dict() for one in sweeps]} if sweeps else {}))
        return
    from hpclm.cli.tables import run_lines, sweep_lines

    if listed.hidden:
        typer.echo(f"({listed.hidden} older runs not shown; --limit 0 shows all)\n")
    blocks = [*(sweep_lines(one) for one in sweeps), *(run_lines(one) for one in listed.runs)]
    typer.echo("\n\n".join("\n".join(block) for block in blocks) or f"no runs in {folder}")


@app.command()
def logs(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log until the stage is over.")] = False,
    stage: StageOption = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Rank number; default: the rank that failed, else 0.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="As it is, with colours and whatever else it sends to the terminal.")
    ] = False,
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
) -> None:
    """Print the log of a rank."""
    from hpclm.runs import rank_logs as logging
    from hpclm.runs.record import find_run
    from hpclm.runs.status import status_of

    found = find_run(_folder(runs_dir, site), run)
    (now,) = status_of([found])
    chosen = logging.choose_stage(found, now, stage)
    path = logging.log_path(found, chosen, rank)
    blocks = logging.follow(path, lambda: logging.stage_is_over(found, chosen.name)) if follow else logging.read(path)
    for block in blocks if raw else logging.whole_lines(blocks):
        (raw_output() if raw else sys.stdout).write(block)
        sys.stdout.flush()


app.command()(doctor)
app.command()(generate)
app.command()(resume)
app.command()(track)


@app.command()
def cancel(
    run: Annotated[str, typer.Argument(help="Run id, a unique prefix of one, or a path.", show_default=False)],
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
) -> None:
    """Cancel a run or a whole sweep; what it has saved is kept, and `hpclm resume` continues from there."""
    from hpclm.runs.cancel import cancel as cancel_run
    from hpclm.runs.lookup import find
    from hpclm.runs.record import Run

    found = find(_folder(runs_dir, site), run)
    if not isinstance(found, Run):
        cancel_sweep(found)
        return
    ended = cancel_run(found)
    typer.echo(f"{found.record.run}: " + (f"cancelled {', '.join(ended)}" if ended else "already over"))


@app.command()
def collect(
    run: RunArgument = None,
    pred_file: Annotated[
        Path | None, typer.Option("--pred-file", help="File for the predictions, one line each.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder; default: results in the run.")] = None,
    stage: StageOption = None,
    metric: MetricOption = None,
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect predictions, scores, checkpoints, metrics and provenance in one folder."""
    from hpclm.cli.tables import collected_lines
    from hpclm.runs.collect import collect as collect_run
    from hpclm.runs.lookup import find
    from hpclm.runs.record import Run

    found = find(_folder(runs_dir, site), run)
    if not isinstance(found, Run):
        gather_sweep(found, out, metric, as_json=as_json)
        return
    done = collect_run(found, pred_file=pred_file, out=out, stage=stage, log=lambda line: typer.echo(line, err=True))
    if as_json:
        shown = str(done.pred_file) if done.pred_file else None
        print_json({"folder": str(done.folder), "pred_file": shown, "summary": done.summary})
    else:
        typer.echo("\n".join(collected_lines(done)))


@app.command()
def nodes(
    forget: Annotated[str | None, typer.Option("--forget", metavar="NODE", help="Remove a node from the list.")] = None,
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the nodes that runs reported as faulty; for a day, new runs exclude them."""
    import dataclasses

    from hpclm.cli.tables import fault_lines
    from hpclm.core.errors import HpclmError
    from hpclm.core.sweep_layout import RunsFolder
    from hpclm.recovery import bad_nodes

    folder = _folder(runs_dir, site)
    if forget is not None:
        if not bad_nodes.forget(folder, forget):
            raise HpclmError(f"node {forget!r} is not reported as faulty in {RunsFolder(folder).bad_nodes}")
        typer.echo(f"{forget}: removed from the bad-node list")
        return
    known = bad_nodes.faults(folder)
    if as_json:
        print_json({"faults": [dataclasses.asdict(fault) for fault in known]})
    else:
        typer.echo("\n".join(fault_lines(known)) or f"no node is reported as faulty in {folder}")


@image_app.command("pull")
def image_pull(
    image: Annotated[str, typer.Argument(help="registry/name:tag.", show_default=False)],
    job: Annotated[bool, typer.Option("--job", help="Run the import as a job.")] = False,
    site: SiteOption = "local",
    runs_dir: RunsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import an image once, for every later run on this site."""
    from hpclm.runs import images

    done = images.pull(image, site, runs_dir, lambda line: typer.echo(line, err=True), in_job=job)
    if as_json:
        print_json(done.to_dict())
    else:
        typer.echo(done.words)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(hpclm.__version__)


def _folder(runs_dir: Path | None, site: str) -> Path:
    from hpclm.recipe.sites import load_site
    from hpclm.runs.runs_folder import runs_folder

    return runs_folder(runs_dir, load_site(site))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. A user's mistake is one message, without a traceback."""
    return guarded(lambda words: app(words, prog_name="hpclm", standalone_mode=True), arguments)


def main() -> None:
    """The `hpclm` command."""
    # A shell without job control starts its background jobs (`hpclm submit --wait &` in a script) with SIGINT ignored,
    # and Python keeps that: a command that waits for hours could not be interrupted and would not clean up. SIGHUP is
    # not changed, so that `nohup hpclm …` outlives its terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))
