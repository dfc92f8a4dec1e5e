"""Converts models and prompts between formats, on one machine's CPU: `hpclm model convert`."""

from __future__ import annotations

import functools
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object, write_json
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import from_dict, read_record, to_dict
from hpclm.core.spec import ModelSpec, TaskTemplate, TokenizerSpec
from hpclm.data.tokenizers import load_tokenizer
from hpclm.engines.megatron.ranks import cpu_standins
from hpclm.engines.megatron.ranks.convert_huggingface import from_huggingface, to_huggingface
from hpclm.engines.megatron.ranks.convert_megatron import from_megatron, to_megatron
from hpclm.formats.archive import Archive
from hpclm.formats.checkpoint_manifest import read_manifest
from hpclm.formats.huggingface.architectures import ADAPTER, ADAPTER_CONFIG
from hpclm.formats.inspection import look
from hpclm.formats.megatron.model_weights import iteration_folder
from hpclm.formats.model_card import read_model_card
from hpclm.formats.nemo.config_writing import gpt_config, prompts_config
from hpclm.formats.nemo.gpt_names import nemo_name
from hpclm.formats.nemo.model_config import model_spec, read_config
from hpclm.formats.nemo.prompt_archives import language_model, semantics_of
from hpclm.formats.nemo.prompt_tables import read_tables

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from hpclm.engines.megatron.ranks.groups import Groups

PARALLEL = ParallelSpec(1, 1, 1, 1, 1, 1)

Tables = list[tuple[TaskTemplate, Tensor]]


def convert(source: Path, out: Path, form: str, task: str | None, tokenizer: TokenizerSpec | None = None) -> str:
    """Write `source` to `out` in another format; returns a description of what was done. Raises CheckpointError.

    Args:
        tokenizer: of a checkpoint of Megatron-LM, which has none.
    """
    kind = look(source)["kind"]
    if tokenizer is not None and kind != "megatron":
        raise CheckpointError(f"{source}: --tokenizer is for checkpoints of Megatron-LM; others have theirs")
    _here()
    folder = _checkpoint(source) if kind == "hpclm-checkpoint" else source
    holds_prompts = kind in ("nemo-prompts", "peft-adapter") or CheckpointFolder(folder).prompts.is_file()
    if holds_prompts and form in ("huggingface", "megatron"):
        raise CheckpointError(f"{source}: contains prompts, not a model; convert them with --to peft")
    if holds_prompts:
        writers: dict[str, Callable[[Path, Tables, str | None], str]] = {
            "nemo": functools.partial(_prompts_to_nemo, trained=_trained_with(folder, kind)),
            "hpclm": _prompts_to_hpclm,
            "peft": _prompts_to_peft,
        }
        return writers[form](out, _tables(folder, kind), task)
    writer = _MODELS.get((kind, form))
    if writer is not None:
        return writer(folder, out)
    if (kind, form) == ("megatron", "hpclm"):
        given = load_tokenizer(tokenizer, None) if tokenizer is not None else None
        return from_megatron(iteration_folder(source) or source, out, given)
    if kind == form or (kind, form) in (("hpclm-checkpoint", "hpclm"), ("nemo-gpt", "nemo")):
        raise CheckpointError(f"{source}: is already in that format")
    if form == "peft":
        raise CheckpointError(f"{source}: is a model, but a PEFT adapter contains prompts; give trained prompts")
    raise CheckpointError(f"{source}: convert it to hpclm first (--to hpclm), and that to {form}")


@functools.cache
def _here() -> Groups:
    """The groups of a world of this process alone, on the CPU."""
    import torch.distributed as dist

    started = dist.is_initialized()
    if not started:
        cpu_standins.install()
    from hpclm.engines.megatron.ranks import groups

    if started:
        return groups.Groups(0, 1, 0, 0, 0, 1, 1, 1, torch.device("cpu"))
    return groups.initialize(dist.HashStore(), 0, PARALLEL, torch.device("cpu"), 1)


def _checkpoint(path: Path) -> Path:
    from hpclm.formats.ranks.checkpoint_manager import resolve

    # as a stage uses them: the best trained prompts, the latest model
    return resolve(path, prefer="best" if CheckpointFolder(path).prompts.is_file() else "latest")


def _build(model: ModelSpec, precision: str = "fp32") -> GPTModel:
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, transformer_config

    config = transformer_config(model, PARALLEL, precision, _here().device, variable_lengths=True)
    return build_gpt(model, config, _here())


def _gpt_to_hpclm(source: Path, out: Path) -> str:
    from hpclm.data.tokenizers import Tokenizer
    from hpclm.formats.nemo.gpt_weights import read_weights
    from hpclm.formats.ranks import checkpoint_store
    from hpclm.formats.ranks.archived_weights import load_gpt
    from hpclm.formats.ranks.shards import sharded_tensors

    with Archive(source) as archive:
        model = model_spec(archive)
        weights = read_weights(archive, model.num_attention_heads, gated=model.gated)
    stored = weights["embedding.word_embeddings.weight"].dtype
    gpt = _build(model, {"bfloat16": "bf16", "float16": "fp16"}.get(stored, "fp32"))
    load_gpt(source, sharded_tensors(gpt), model)
    notes = []

    def finish(folder: Path) -> None:
        write_json(CheckpointFolder(folder).model, to_dict(model))
        try:
            Tokenizer.from_archive(source).save(folder)
        except CheckpointError as error:
            notes.append(str(error))

    checkpoint_store.save(out, sharded_tensors(gpt), _state(), finish)
    return "\n".join([f"{out}: a checkpoint of {stored} weights", *notes])


def _state() -> dict[str, object]:
    return {"step": 0, "val_loss": None, "best": []}


def _gpt_to_nemo(folder: Path, out: Path) -> str:
    from hpclm.formats.ranks import checkpoint_store
    from hpclm.formats.ranks.shards import sharded_tensors

    model = read_model_card(folder, "give a complete checkpoint")
    tokenizer = _tokenizer_files(folder)
    config = gpt_config(model, list(tokenizer))
    gpt = _build(model)
    shards = sharded_tensors(gpt)
    checkpoint_store.load(folder, shards)
    state: dict[str, Tensor] = {}
    for shard in shards:
        # a gated MLP's halves are two pieces of one tensor, the gate first
        name = nemo_name(shard.key)
        part = shard.data.detach()
        state[name] = torch.cat([state[name], part]) if name in state else part.clone()
    _write_tar(out, {"model_config.yaml": config.encode(), "model_weights.ckpt": _saved(state), **tokenizer})
    return f"{out}: a NeMo archive at tensor and pipeline parallel 1" + ("" if tokenizer else "; without a tokenizer")


_MODELS: dict[tuple[str, str], Callable[[Path, Path], str]] = {
    ("huggingface", "hpclm"): from_huggingface,
    ("hpclm-checkpoint", "huggingface"): to_huggingface,
    ("hpclm-checkpoint", "megatron"): to_megatron,
    ("hpclm-checkpoint", "nemo"): _gpt_to_nemo,
    ("nemo-gpt", "hpclm"): _gpt_to_hpclm,
}


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    """GPT-2's two files from a byte-level BPE's tokenizer.json, or a SentencePiece model; none for other kinds."""
    pieces = CheckpointFolder(folder).sentencepiece
    if pieces.is_file():
        return {"hpclm_tokenizer.model": pieces.read_bytes()}
    found = read_object(CheckpointFolder(folder).tokenizer) or {}
    model = found.get("model") or {}
    if model.get("type") != "BPE":
        return {}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    added = {token["content"]: token["id"] for token in found.get("added_tokens") or []}
    return {
        "hpclm_vocab.json": json.dumps(model["vocab"] | added, ensure_ascii=False).encode(),
        "hpclm_merges.txt": ("#version: 0.2\n" + "".join(f"{one}\n" for one in merges)).encode(),
    }


def _tables(folder: Path, kind: str) -> Tables:
    if kind == "nemo-prompts":
        return _tables_of_archive(folder)
    return _tables_of_adapter(folder) if kind == "peft-adapter" else _tables_of_checkpoint(folder)


def _trained_with(folder: Path, kind: str) -> tuple[str | None, str | None]:
    """The model and the `data.semantics` that prompts were trained with, where they say it."""
    if kind == "nemo-prompts":
        return language_model(str(folder)), semantics_of(str(folder))
    card = read_record(PromptsCard, CheckpointFolder(folder).prompts)
    return (card.base, card.semantics) if card else (None, None)


def _tables_of_archive(path: Path) -> Tables:
    from hpclm.formats.ranks.archived_weights import tensor_of

    with Archive(path) as archive:
        tables = {task: tensor_of(archive, facts).float().clone() for task, facts in read_tables(archive).items()}
        written = read_config(archive).get("task_templates") or []
    known = {str(one.get("taskname")): one for one in written if isinstance(one, dict)}
    return [(_template(task, len(table), known.get(task, {})), table) for task, table in tables.items()]


def _template(task: str, count: int, written: dict[str, Any]) -> TaskTemplate:
    """NeMo's task template as hpclm's; where the archive has none, one with only the virtual tokens."""
    splits = [int(one) for one in written.get("virtual_token_splits") or [count]]
    if sum(splits) != count:
        raise CheckpointError(f"task {task}: its template splits {sum(splits)} virtual tokens, its table has {count}")
    return TaskTemplate(
        taskname=task,
        prompt_template=str(written.get("prompt_template") or "<|VIRTUAL_PROMPT_0|>"),
        total_virtual_tokens=count,
        virtual_token_splits=splits,
        truncate_field=written.get("truncate_field"),
        answer_only_loss=bool(written.get("answer_only_loss", True)),
        answer_field=written.get("answer_field"),
    )


def _tables_of_adapter(path: Path) -> Tables:
    stored = load_file(path / ADAPTER)
    if "prompt_embeddings" not in stored or stored["prompt_embeddings"].dim() != 2:
        raise CheckpointError(
            f"{path}: contains no prompt_embeddings; adapters of prompt tuning and p-tuning can be read"
        )
    table = stored["prompt_embeddings"].float()
    return [(_template(path.name, len(table), {}), table)]


def _tables_of_checkpoint(folder: Path) -> Tables:
    from hpclm.adapters.ranks.building import build_prompts
    from hpclm.formats.ranks import checkpoint_store

    card = from_dict(PromptsCard, read_object(CheckpointFolder(folder).prompts) or {})
    stored = read_manifest(folder).tensors
    hidden = next(one.shape[1] for name, one in stored.items() if name.startswith(_TABLES))
    if card.prompt is not None and card.prompt.encoder == "biglstm":
        hidden = stored["prompts.encoder.head.2.weight"].shape[0]
    module = build_prompts(card, _config(hidden), 1, _here().device)
    checkpoint_store.load(folder, module.shards())
    with torch.no_grad():
        tables = module.eval()().cpu()
    return [(one, tables[place, : one.total_virtual_tokens].clone()) for place, one in enumerate(card.task_templates)]


# as checkpoints name trainable tables, input tables and frozen tables
_TABLES = ("prompts.free.", "prompts.inputs.", "prompts.kept.")


def _config(hidden: int) -> TransformerConfig:
    """A configuration with the width of the virtual tokens; nothing else in it matters."""
    from hpclm.engines.megatron.ranks.gpt_model import transformer_config

    model = ModelSpec(1, hidden, 4 * hidden, 1, 1, hidden, 8, 8, 8)
    return transformer_config(model, PARALLEL, "fp32", _here().device, variable_lengths=True)


def _prompts_to_nemo(out: Path, tables: Tables, _task: str | None, trained: tuple[str | None, str | None]) -> str:
    stored: dict[str, Tensor] = {}
    for template, table in tables:
        stored[f"prompt_table.{template.taskname}.prompt_embeddings.weight"] = table
        stored[f"prompt_table.{template.taskname}.indices"] = torch.arange(len(table))
    config = prompts_config([template for template, _ in tables], *trained)
    weights = _saved({"prompt_table": stored})
    _write_tar(out, {"model_config.yaml": config.encode(), "model_weights.ckpt": weights})
    return f"{out}: a prompt-learning archive of {', '.join(one.taskname for one, _ in tables)}, as up to NeMo r1.16"


def _prompts_to_hpclm(out: Path, tables: Tables, _task: str | None) -> str:
    from hpclm.adapters.ranks.building import build_prompts
    from hpclm.formats.ranks import checkpoint_store

    templates = [template for template, _ in tables]
    card = PromptsCard("prompt-tuning", None, templates, kept=[template.taskname for template in templates])
    module = build_prompts(card, _config(tables[0][1].shape[1]), 1, _here().device)
    for template, table in tables:
        module.set_frozen(template, table)
    checkpoint_store.save(
        out, module.shards(), _state(), lambda folder: write_json(CheckpointFolder(folder).prompts, to_dict(card))
    )
    return f"{out}: prompts of {', '.join(one.taskname for one in templates)}"


def _prompts_to_peft(out: Path, tables: Tables, task: str | None) -> str:
    names = [template.taskname for template, _ in tables]
    if task is None and len(names) > 1:
        raise CheckpointError(
            f"a PEFT adapter contains one task, but there are {', '.join(names)}; choose one with --task"
        )
    if task is not None and task not in names:
        raise CheckpointError(f"there is no task {task!r}; choose {' or '.join(names)}")
    template, table = tables[names.index(task) if task else 0]
    text = template.prompt_template
    if len(template.virtual_token_splits) > 1 or not text.startswith("<|VIRTUAL_PROMPT_0|>"):
        raise CheckpointError(
            f"task {template.taskname}: its virtual tokens are inside the template ({text[:60]!r}), but PEFT puts "
            "all of them in front; only a single split at the start can be converted"
        )
    out.mkdir(parents=True)
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": len(table),
        "token_dim": table.shape[1],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file({"prompt_embeddings": table.contiguous()}, str(out / ADAPTER))
    return f"{out}: a PEFT adapter of {template.taskname}"


def _saved(value: Mapping[str, object]) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _write_tar(out: Path, members: dict[str, bytes]) -> None:
    partial = out.with_name(out.name + ".partial")
    try:
        with tarfile.open(partial, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        shutil.move(partial, out)
    finally:
        partial.unlink(missing_ok=True)
