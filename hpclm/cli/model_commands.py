"""`hpclm model`: fetches, inspects and converts models and prompts."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hpclm.cli import library_warnings
from hpclm.cli.tokenizer_options import MERGES, TOKENIZER, VOCAB, tokenizer_spec

model_app = typer.Typer(
    help="Fetch, inspect and convert models and trained prompts.", no_args_is_help=True, rich_markup_mode=None
)


class Form(str, Enum):
    hpclm = "hpclm"
    huggingface = "huggingface"
    nemo = "nemo"
    megatron = "megatron"
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


class DType(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@model_app.command()
def merge(
    source: Annotated[
        Path, typer.Argument(help="A tuned stage's checkpoints, one of them, or a PEFT adapter.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Output folder; must not exist yet.", show_default=False)],
    dtype: Annotated[DType, typer.Option("--dtype", help="Of the weights; they are joined in fp32.")] = DType.bf16,
    remote_code: Annotated[bool, typer.Option("--remote-code", help="Run the Python files beside the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """A transformers folder of what a fine-tune stage has made; a LoRA adapter is joined with its model, and the logits
    of both are compared."""
    from hpclm.cli.output import print_json
    from hpclm.core.errors import HpclmError

    if out.exists():
        raise HpclmError(f"{out}: already exists; give another name")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = _exported(source, out, dtype, remote_code=remote_code)
    if as_json:
        print_json(found)
        return
    difference = found["difference"]
    same = "" if difference is None else f"; its logits differ by at most {difference:.2g} from the adapter's (fp32)"
    typer.echo(f"{found['folder']}: {found['method']}, {found['dtype']}{same}")


@model_app.command("init")
def initialize(
    source: Annotated[
        Path, typer.Argument(help="A config.json of transformers, or a folder that has one.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Output folder; must not exist yet.", show_default=False)],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A folder with a tokenizer, if the source's has none.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the weights.")] = 1234,
    dtype: Annotated[DType, typer.Option("--dtype", help="Of the weights.")] = DType.fp32,
) -> None:
    """A model that has learned nothing yet, to pre-train it with engine hf: weights drawn from a configuration."""
    from hpclm.core.errors import HpclmError

    if out.exists():
        raise HpclmError(f"{out}: already exists; give another name")
    for path in (source, tokenizer):
        if path is not None and not path.exists():
            raise HpclmError(f"{path}: does not exist")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    library_warnings.hide()
    try:
        from hpclm.engines.hf.ranks.new_models import initialize as make
    except ImportError as error:
        raise HpclmError(f"this needs transformers ({error}); install hpclm[hf]") from None
    count = make(source, out, tokenizer, seed, dtype.value)
    typer.echo(f"{out}: {count:,} parameters, {dtype.value}, drawn with seed {seed}")


def _exported(source: Path, out: Path, dtype: DType, *, remote_code: bool) -> dict[str, Any]:
    from hpclm.core.errors import HpclmError

    library_warnings.hide()
    try:
        from hpclm.engines.hf.ranks.exporting import exported
    except ImportError as error:
        raise HpclmError(f"this needs transformers and peft ({error}); install hpclm[hf]") from None
    return exported(str(source), str(out), dtype.value, remote_code)


@model_app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Model, checkpoint or prompts to convert.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Output path; must not exist yet.", show_default=False)],
    to: Annotated[Form, typer.Option("--to", help="Output format.", show_default=False)],
    task: Annotated[str | None, typer.Option("--task", help="peft: the task (needed if there are several).")] = None,
    tokenizer: TOKENIZER = None,
    vocab_file: VOCAB = None,
    merges_file: MERGES = None,
) -> None:
    """Between hpclm's checkpoints and transformers' folders (GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen3), checkpoints
    of Megatron-LM (a tokenizer is given with them), NeMo's archives (GPT models and prompts) and PEFT's adapters."""
    from hpclm.core.errors import HpclmError

    if out.exists():
        raise HpclmError(f"{out}: already exists; give another name")
    # on this machine's CPU, even if it has a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    library_warnings.hide()
    from hpclm.formats.huggingface.tuned_folders import is_tuned

    if to is Form.huggingface and is_tuned(source):
        typer.echo(_exported(source, out, DType.fp32, remote_code=False)["folder"])
        return
    try:
        from hpclm.engines.megatron.ranks.convert import convert as make
    except ImportError as error:
        raise HpclmError(f"converting needs the engine ({error}); install hpclm[engine]") from None
    given = tokenizer_spec(vocab_file, merges_file, tokenizer) if tokenizer or vocab_file or merges_file else None
    typer.echo(make(source, out, to.value, task, given))
