"""`hpclm resume`: the unfinished stages of a run again, on other nodes or devices if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpclm.cli.output import finish, follow_shown, print_submitted
from hpclm.cli.sweep_commands import resume_sweep


def resume(
    run: Annotated[
        str | None, typer.Argument(help="Run id, a unique prefix of one, or a path; default: the latest run.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run ends and exit with its exit code.")] = False,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes, if others than before.")] = None,
    devices_per_node: Annotated[
        int | None, typer.Option("--devices-per-node", min=1, help="Devices (ranks) per node, if others than before.")
    ] = None,
    site: Annotated[
        str, typer.Option("--site", envvar="HPCLM_SITE", help="local, slurm, or a site profile.")
    ] = "local",
    runs_dir: Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Submit the unfinished stages again, from their last complete checkpoint; on other nodes or devices with the same
    batches."""
    from hpclm.core.errors import HpclmError
    from hpclm.recipe.sites import load_site
    from hpclm.runs.lookup import find
    from hpclm.runs.record import Run
    from hpclm.runs.resume import resume as resume_run
    from hpclm.runs.runs_folder import runs_folder

    found = find(runs_folder(runs_dir, load_site(site)), run)
    if not isinstance(found, Run):
        if nodes or devices_per_node:
            raise HpclmError("--nodes and --devices-per-node are for single runs, not for sweeps")
        resume_sweep(found)
        return
    again, stages = resume_run(found, nodes, devices_per_node)
    if wait:
        finish(follow_shown(again, quiet=as_json), as_json)
    else:
        print_submitted(again, stages, as_json)
