"""`hpclm site`: profiles of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

site_app = typer.Typer(help="Site profiles of clusters.", no_args_is_help=True, rich_markup_mode=None)


@site_app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="The profile's name, for --site.")] = "cluster",
    out: Annotated[Path | None, typer.Option("--out", help="Output file; default: in your own profiles.")] = None,
    scheduler: Annotated[str, typer.Option("--scheduler", help="Scheduler to query.")] = "slurm",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
) -> None:
    """Write a profile from what the scheduler reports, for the user to check."""
    from hpclm.runs.site_init import write_profile

    path = write_profile(name, out, scheduler=scheduler, force=force)
    typer.echo(f"written to {path}; check it, then: hpclm submit RECIPE --site {out or name} --dry-run")


@site_app.command("list")
def list_() -> None:
    """List the available sites."""
    from hpclm.recipe.sites import known_sites

    for name, path in known_sites().items():
        typer.echo(f"{name}  {path}")


@site_app.command("show")
def show(name: Annotated[str, typer.Argument(help="Name or path of a profile.", show_default=False)]) -> None:
    """Show a profile with every default filled in."""
    import dataclasses

    from hpclm.cli.output import print_json
    from hpclm.recipe.sites import load_site

    print_json(dataclasses.asdict(load_site(name)))
