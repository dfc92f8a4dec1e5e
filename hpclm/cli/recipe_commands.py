"""`hpclm recipe`: recipes from other files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

recipe_app = typer.Typer(help="Recipes.", no_args_is_help=True, rich_markup_mode=None)


@recipe_app.callback()
def root() -> None:
    """Recipes."""


@recipe_app.command("import")
def import_recipe(
    file: Annotated[
        Path,
        typer.Argument(
            help="A prompt-learning YAML file of NeMo 1.x or its launcher, a script with pretrain_gpt.py's flags, "
            "LLaMA-Factory's or axolotl's YAML, or TrainingArguments (SFTConfig) as JSON.",
            show_default=False,
        ),
    ],
    assignments: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The same as --set.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value, using the tool's key.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Output file; default: standard output.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Translate another tool's file or script into a recipe, and report how each of its keys was handled.

    Nothing of a script is run."""
    from hpclm.cli.output import print_json
    from hpclm.core.errors import HpclmError
    from hpclm.core.files import write_text
    from hpclm.recipe.import_report import imported, lines_of

    if out is not None and out.exists():
        raise HpclmError(f"{out}: already exists; give another name")
    text, notes = imported(file, [*(overrides or ()), *(assignments or ())], out.parent if out else file.parent)
    if out is not None:
        write_text(out, text)
    if as_json:
        print_json({"recipe": text, "keys": [dataclasses.asdict(note) for note in notes]})
    elif out is None:
        typer.echo(text, nl=False)
    else:
        typer.echo("\n".join([*lines_of(notes), f"written to {out}"]))
