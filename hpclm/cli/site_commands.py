"""`hpclm site`: profiles of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

site_app = typer.Typer(help="Profiles of clusters.", no_args_is_help=True, rich_markup_mode=None)


@site_app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="The profile's name, for --site.")] = "cluster",
    out: Annotated[Path | None, typer.Option("--out", help="The file; default: among your own profiles.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace one that is there.")] = False,
) -> None:
    """Write a profile from what the scheduler says, to be looked through."""
    from hpclm.runs.site_init import write_profile

    path = write_profile(name, out, force=force)
    typer.echo(f"written to {path}; look through it, then: hpclm submit RECIPE --site {out or name} --dry-run")


@site_app.command("list")
def list_() -> None:
    """The sites there are."""
    from hpclm.recipe.sites import known_sites

    for name, path in known_sites().items():
        typer.echo(f"{name}  {path}")


@site_app.command("show")
def show(name: Annotated[str, typer.Argument(help="A profile's name or path.", show_default=False)]) -> None:
    """A profile as it is read, every default in it."""
    import dataclasses

    from hpclm.cli.output import print_json
    from hpclm.recipe.sites import load_site

    print_json(dataclasses.asdict(load_site(name)))
