"""`hpclm doctor`: checks this machine, the cluster, and whether they can run a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpclm.cli.output import print_json
from hpclm.core.exit_codes import ExitCode

if TYPE_CHECKING:
    from hpclm.nodes.diagnosis import Row, State
    from hpclm.nodes.gpu_checks import Need
    from hpclm.nodes.node_facts import NodeFacts
    from hpclm.schedulers.capabilities import SiteCapabilities
    from hpclm.schedulers.interface import Survey


def doctor(
    site: Annotated[
        str, typer.Option("--site", envvar="HPCLM_SITE", help="local, slurm, or the name or path of a site profile.")
    ] = "local",
    nodes: Annotated[
        str | None, typer.Option("--nodes", help="Check nodes with a short job: a number, names, or all (idle ones).")
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Also check against this recipe.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a value: KEY.KEY=VALUE.")] = None,
    runs_dir: Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")] = None,
    wait_s: Annotated[int, typer.Option("--wait-s", min=1, help="Seconds to wait for the nodes.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check GPUs, scheduler, container runtime and file system, here and on the nodes."""
    from hpclm.nodes.diagnosis import diagnose, worst
    from hpclm.nodes.node_facts import facts
    from hpclm.recipe.sites import load_site
    from hpclm.runs.runs_folder import runs_folder
    from hpclm.schedulers.interface import scheduler_of

    where = load_site(site)
    scheduler = scheduler_of(where)
    folder = _existing(runs_folder(runs_dir, where))
    capabilities = scheduler.capabilities(where, gpu=True, container=True)
    asked = _ask(capabilities, folder, nodes, wait_s) if nodes is not None else None
    here = facts(folder)
    needs, rows = _recipe(recipe, overrides or [], site, runs_dir)
    own = {} if scheduler.has_job_ids else needs  # ranks run on this machine where there are no jobs
    rows = [*diagnose("here", here, own), *_scheduler(capabilities, here), *rows]
    if asked is not None:
        rows += _nodes(asked, here, needs)
    if as_json:
        nodes_facts = asked.facts if asked else {}
        findings = [dataclasses.asdict(row) for row in rows]
        print_json({"state": worst(rows), "findings": findings, "here": dataclasses.asdict(here), "nodes": nodes_facts})
    else:
        _show(rows)
    if worst(rows) == "error":
        raise typer.Exit(ExitCode.SITE)


def _existing(folder: Path) -> Path:
    """The runs folder, or where it would be created."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _recipe(
    recipe: Path | None, overrides: list[str], site: str, runs_dir: Path | None
) -> tuple[dict[str, Need], list[Row]]:
    """What its GPU stages need, and why a submit would be refused. Raises the same errors as `submit`."""
    if recipe is None:
        return {}, []
    from hpclm.nodes.diagnosis import Row
    from hpclm.nodes.need import need_of
    from hpclm.runs.submit import Request, prepare

    prepared = prepare(Request(recipe, tuple(overrides), site=site, runs_dir=runs_dir))
    needs = {
        stage.name: dataclasses.replace(need_of(stage.spec.parallel, stage.spec.needs), cuda=None, compat=False)
        for stage in prepared.plan.stages
        if stage.resources.device == "gpu" and stage.spec is not None
    }
    rows = [Row("recipe", "submit", "error", problem, "a submit would be refused") for problem in prepared.problems]
    return needs, rows or [Row("recipe", "submit", "info", "no problem found")]


def _scheduler(capabilities: SiteCapabilities, here: NodeFacts) -> list[Row]:
    from hpclm.core.registries import RUNTIMES
    from hpclm.core.site import NO_RUNTIME
    from hpclm.nodes.diagnosis import Row
    from hpclm.schedulers.interface import scheduler_of

    site = capabilities.site
    runtime = site.container.runtime
    known = RUNTIMES.get(runtime) if runtime in RUNTIMES else None
    there = known is None or known.program is None or runtime in here.runtimes
    found: str = runtime if runtime != NO_RUNTIME else "not set in the site profile" if here.runtimes else "none found"
    if here.runtimes:
        found += f"; on this machine: {', '.join(here.runtimes)}"
    means = "recipes with a container cannot run" if runtime == NO_RUNTIME else ""
    state: State = "none" if runtime == NO_RUNTIME and not here.runtimes else "info" if there else "warning"
    box = Row("site", "container", state, found, means if there else f"{runtime} is not installed here")
    if not scheduler_of(site).has_job_ids:
        return [box, Row("site", "scheduler", "info", "none: runs start on this machine", "one node only")]
    if capabilities.partition is None:
        return [box, Row("site", "scheduler", "error", str(capabilities.trouble), "nothing can be submitted")]
    part = capabilities.partition
    types = ", ".join(f"{count} × {name}" for name, count in part.gpu_types) or f"{part.gpus_per_node} without a type"
    limit = "no time limit" if part.time_limit_min is None else f"{part.time_limit_min} min per job"
    found = f"partition {part.name}: {part.nodes} nodes, GPUs per node: {types}, {limit}"
    up = Row("site", "scheduler", "info", found, "" if part.gpus_per_node else "only stages with device: cpu")
    down = Row("site", "scheduler", "error", f"partition {part.name} is not up", "no job starts there")
    hazards = [Row("site", "scheduler", "warning", what, means) for what, means in scheduler_of(site).hazards(site)]
    return [box, up if part.up else down, *hazards]


def _ask(capabilities: SiteCapabilities, folder: Path, nodes: str, wait_s: float) -> Survey:
    from hpclm.schedulers.interface import scheduler_of

    def log(line: str) -> None:
        typer.echo(f"doctor: {line}", err=True)

    try:
        return scheduler_of(capabilities.site).survey(capabilities, folder, nodes, wait_s, log)
    except KeyboardInterrupt:
        typer.echo("\ndoctor: stopped; its job was cancelled", err=True)
        raise typer.Exit(130) from None


def _nodes(asked: Survey, here: NodeFacts, needs: dict[str, Need]) -> list[Row]:
    from hpclm.core.records import from_dict
    from hpclm.nodes.diagnosis import Row, compare, diagnose
    from hpclm.nodes.node_facts import NodeFacts

    rows: list[Row] = []
    known: dict[str, NodeFacts] = {}
    for name, written in sorted(asked.facts.items()):
        try:
            known[name] = from_dict(NodeFacts, written, ignore_unknown=True)
        except ValueError as error:
            rows.append(Row(name, "node", "error", f"what it reported cannot be read: {error}", "run doctor again"))
            continue
        rows += diagnose(name, known[name], needs, expect_gpus=asked.expected_gpus.get(name))
    rows += compare(here, known)
    for name, why in sorted(asked.silent.items()):
        busy = name in asked.busy
        rows.append(Row(name, "node", "info" if busy else "error", why, "" if busy else "no run can use it"))
    return rows


def _show(rows: list[Row]) -> None:
    from hpclm.cli.tables import table

    words = {"info": "ok", "none": "none", "warning": "warning", "error": "WRONG"}
    cells = [(row.node, row.check, words[row.severity], row.found, row.means) for row in rows]
    typer.echo("\n".join(table([("where", "what", "state", "found", "for the recipe"), *cells], indent="")))
