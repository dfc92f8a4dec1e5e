"""`hpclm model`: fetches, inspects and converts models and prompts."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

model_app = typer.Typer(
    help="Fetch, inspect and convert models and trained prompts.", no_args_is_help=True, rich_markup_mode=None
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
def fetch(
    name: Annotated[
        str | None, typer.Argument(metavar="ORG/NAME[@REVISION]", help="A model on the Hub.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder of plain files; default: the Hub's cache (HF_HOME).")
    ] = None,
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Fetch the model's own *.py too; read them before anything runs them.")
    ] = False,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FOLDER", help="Check a fetched folder instead; no network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch a model from the Hugging Face Hub, for nodes without a network: configuration, tokenizer and safetensors,
    every file compared with its digest.

    The token is that of HF_TOKEN or of `hf auth login`. Interrupted, the same command goes on where it was."""
    from hpclm.cli.fetch_output import check_fetched, fetch_shown
    from hpclm.core.errors import HpclmError

    if (name is None) == (check is None):
        raise HpclmError("give one of ORG/NAME and --check FOLDER")
    if check is not None:
        check_fetched(check, as_json=as_json)
    elif name is not None:
        fetch_shown(name, "model", out, remote_code=remote_code, as_json=as_json)


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
