"""`hpclm model`: inspects models and prompts and converts them."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

model_app = typer.Typer(
    help="Inspect and convert models and trained prompts.", no_args_is_help=True, rich_markup_mode=None
)


class Form(str, Enum):
    hpclm = "hpclm"
    huggingface = "huggingface"
    nemo = "nemo"
    peft = "peft"


@model_app.command("inspect")
def inspect_model(
    path: Annotated[
        Path, typer.Argument(help="A .nemo archive, checkpoint, Hugging Face folder or adapter.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model, checkpoint or archive contains; nothing in it is executed."""
    from hpclm.cli.output import print_json
    from hpclm.cli.tables import held_lines
    from hpclm.formats.inspection import look

    found = look(path)
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(held_lines(found)))


@model_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Model, checkpoint or prompts to convert.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Output path; must not exist yet.", show_default=False)],
    to: Annotated[Form, typer.Option("--to", help="Output format.", show_default=False)],
    task: Annotated[str | None, typer.Option("--task", help="peft: the task (needed if there are several).")] = None,
) -> None:
    """Between hpclm's checkpoints and transformers' folders (GPT-2, Llama, Mistral, Qwen2, Qwen3), NeMo's archives (GPT
    models and prompts) and PEFT's adapters (prompts)."""
    from hpclm.core.errors import HpclmError

    if out.exists():
        raise HpclmError(f"{out}: already exists; give another name")
    # on this machine's CPU, even if it has a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        from hpclm.engines.megatron.ranks.convert import convert as make
    except ImportError as error:
        raise HpclmError(f"converting needs the engine ({error}); install hpclm[engine]") from None
    typer.echo(make(source, out, to.value, task))
