"""`hpclm generate`: text from a trained model."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpclm.cli import library_warnings

if TYPE_CHECKING:
    from hpclm.core.spec import GenerationSpec


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


_MODEL = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="A run (its last model), a checkpoint, a Hugging Face folder or a .nemo archive.",
        show_default=False,
    ),
]
_PROMPTS = Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts.", show_default=False)]
_FILE = Annotated[Path | None, typer.Option("--file", help="Prompts, one a line; of .jsonl the key prompt.")]


_MOST = Annotated[int, typer.Option("--max-new-tokens", min=1, max=10**6)]
_LEAST = Annotated[int, typer.Option("--min-new-tokens", min=0)]
_SAMPLE = Annotated[bool, typer.Option("--sample", help="Draw tokens; default: the most likely.")]
_TEMPERATURE = Annotated[float, typer.Option("--temperature", min=1e-6, max=100, help="With --sample.")]
_TOP_K = Annotated[int, typer.Option("--top-k", min=0, help="With --sample; 0: all.")]
_TOP_P = Annotated[float, typer.Option("--top-p", min=1e-6, max=1, help="With --sample.")]
_PENALTY = Annotated[float, typer.Option("--repetition-penalty", min=1e-6, max=100)]
_ENDS = Annotated[list[str] | None, typer.Option("--end-string", help="Ends the text; may be repeated.")]
_BOS = Annotated[bool, typer.Option("--add-bos", help="Begin prompts with the BOS token.")]
_SEED = Annotated[int, typer.Option("--seed", min=0)]
_BATCH = Annotated[int, typer.Option("--batch-size", min=1, max=10**5, help="Prompts at the same time.")]
_TENSOR = Annotated[int, typer.Option("--tensor", min=1, max=1024, help="Tensor parallel processes.")]
_PIPELINE = Annotated[int, typer.Option("--pipeline", min=1, max=1024, help="Pipeline stages.")]
_DEVICE = Annotated[Device, typer.Option("--device", help="auto: GPUs where there are enough.")]
_RUNS = Annotated[Path | None, typer.Option("--runs-dir", help="Folder of the runs.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def generate(
    model: _MODEL,
    prompts: _PROMPTS = None,
    file: _FILE = None,
    max_new_tokens: _MOST = 100,
    min_new_tokens: _LEAST = 0,
    sample: _SAMPLE = False,
    temperature: _TEMPERATURE = 1.0,
    top_k: _TOP_K = 0,
    top_p: _TOP_P = 1.0,
    repetition_penalty: _PENALTY = 1.0,
    end_string: _ENDS = None,
    add_bos: _BOS = False,
    batch_size: _BATCH = 16,
    seed: _SEED = 1234,
    tensor: _TENSOR = 1,
    pipeline: _PIPELINE = 1,
    device: _DEVICE = Device.auto,
    runs_dir: _RUNS = None,
    as_json: _JSON = False,
) -> None:
    """Continue prompts with a trained model on this machine; a model that engine hf has tuned answers them as
    instructions, in the template that it was tuned with."""
    from hpclm.cli.output import print_json
    from hpclm.core.spec import GenerationSpec

    texts = _texts(prompts, file)
    spec = GenerationSpec(
        max_new_tokens,
        min_new_tokens,
        not sample,
        temperature,
        top_k,
        top_p,
        repetition_penalty,
        end_string or [],
        add_bos,
        batch_size,
        seed,
    )
    _refuse_contradictions(spec)
    path = _model_at(model, runs_dir)
    found = _generated(path, texts, spec, (tensor, pipeline), device)
    if as_json:
        print_json({"answers": found})
    else:
        between = "\n" if _is_of_engine_hf(path) else ""
        typer.echo("\n".join(f"{one['prompt']}{between}{one['text']}" for one in found))


def _texts(prompts: list[str] | None, file: Path | None) -> list[str]:
    from hpclm.core.errors import HpclmError

    found = [*(prompts or ()), *(_prompts_in(file) if file else ())]
    if not found:
        raise HpclmError(f"{file}: contains no prompt" if file else "give a prompt, or --file")
    return found


def _refuse_contradictions(spec: GenerationSpec) -> None:
    from hpclm.core.errors import HpclmError

    drawn = {"--temperature": spec.temperature != 1.0, "--top-k": spec.top_k > 0, "--top-p": spec.top_p != 1.0}
    needing = [name for name, given in drawn.items() if given and spec.greedy]
    if needing:
        raise HpclmError(f"{needing[0]} has no effect on the likeliest tokens; add --sample, or leave it out")
    if spec.min_new_tokens > spec.max_new_tokens:
        raise HpclmError(f"--min-new-tokens {spec.min_new_tokens} is more than --max-new-tokens {spec.max_new_tokens}")


def _generated(
    model: str, texts: list[str], spec: GenerationSpec, split: tuple[int, int], device: Device
) -> list[dict[str, Any]]:
    from hpclm.core.errors import HpclmError

    if device is Device.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    library_warnings.hide()
    if _is_of_engine_hf(model):
        return _answered(model, texts, spec, split, device)
    try:
        from hpclm.engines.megatron.ranks.generate import Request, generate
    except ImportError as error:
        raise HpclmError(f"generating needs the engine ({error}); install hpclm[engine]") from None
    return generate(Request(model, texts, spec, *split, device.value))


def _is_of_engine_hf(model: str) -> bool:
    from hpclm.formats.huggingface.tuned_folders import is_tuned

    return is_tuned(Path(model))


def _answered(
    model: str, texts: list[str], spec: GenerationSpec, split: tuple[int, int], device: Device
) -> list[dict[str, Any]]:
    from hpclm.core.errors import HpclmError

    if split != (1, 1):
        raise HpclmError(
            f"{model} is a model of engine hf, which answers in one process; leave --tensor and --pipeline out"
        )
    try:
        from hpclm.engines.hf.ranks.instruction_answers import answer
    except ImportError as error:
        raise HpclmError(f"this needs transformers and peft ({error}); install hpclm[hf]") from None
    return answer(model, texts, spec, device.value)


def _prompts_in(file: Path) -> list[str]:
    """The prompts of a file: its lines, but for empty ones at its end. Raises DataError with the line."""
    from hpclm.core.errors import DataError
    from hpclm.core.files import open_file

    try:
        with open_file(file) as stream:
            lines = stream.read().rstrip(b"\r\n").splitlines()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_prompt(line, is_json=file.suffix == ".jsonl"))
        except ValueError as error:
            raise DataError(f"{file}:{number}: {error}") from None
    return found


def _prompt(line: bytes, *, is_json: bool) -> str:
    """Raises ValueError for what is none."""
    import json

    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} of the line") from None
    if is_json:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError("not an object with a text called prompt")
        text = row["prompt"]
    if not text.strip():
        raise ValueError("an empty prompt; remove it")
    return text


def _model_at(name: str, runs_dir: Path | None) -> str:
    """A path as it is, unless it is a run's folder; else the checkpoints of a run's last stage that has a model."""
    from hpclm.core.checkpoint_layout import CheckpointFolder
    from hpclm.core.errors import HpclmError
    from hpclm.core.layout import RunPaths
    from hpclm.recipe.sites import load_site
    from hpclm.runs.record import find_run
    from hpclm.runs.runs_folder import runs_folder

    path = Path(name)
    if path.exists() and not RunPaths(path).record.is_file():
        return str(path.absolute())
    run = find_run(runs_folder(runs_dir, load_site("local")), name)
    for stage in reversed(run.record.stages):
        checkpoints = run.paths.stage(stage.name).checkpoints
        if CheckpointFolder(checkpoints).model.is_file() or _is_of_engine_hf(str(checkpoints)):
            return str(checkpoints)
    raise HpclmError(f"{run.record.run}: no stage of it has saved a model yet")
