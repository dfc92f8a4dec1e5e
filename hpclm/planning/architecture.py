"""The model of a stage: from the recipe's keys, from a checkpoint's model.json, or from another stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file
from hpclm.core.nearest import closest, divisors, either
from hpclm.core.records import from_dict
from hpclm.core.spec import GATED, ModelSpec
from hpclm.core.vocabulary_size import padded_vocab_size
from hpclm.formats.archive import Archive
from hpclm.formats.checkpoint_manifest import inside, read_manifest
from hpclm.formats.checkpoint_pointers import pointed
from hpclm.formats.huggingface.architectures import is_huggingface, model_spec
from hpclm.formats.huggingface.weights import located
from hpclm.formats.megatron.model_weights import iteration_folder, read_model, read_weights
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.planning.stage_context import StageContext

# Keys that concern training and not the weights: a stage may set its own.
_FREE = ("hidden_dropout", "attention_dropout", "init_std", "moe_aux_loss_coeff", "moe_z_loss_coeff")
_NEEDED = ("num_layers", "hidden_size", "num_attention_heads")
_MAX_JSON_BYTES = 1 << 20


def written_keys(stage: StageContext) -> dict[str, Any]:
    """The architecture keys that the recipe gives."""
    if stage.recipe.model is None:
        return {}
    given = stage.recipe.model.model_dump(exclude={"checkpoint"})
    return {key: value for key, value in given.items() if value is not None}


def from_keys(stage: StageContext, vocab_size: int | None, default_positions: int | None) -> ModelSpec | None:
    """The architecture from the recipe's keys alone, defaults resolved; findings for what is missing or invalid."""
    keys = written_keys(stage)
    missing = [key for key in _NEEDED if key not in keys]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        stage.error(
            ("model",),
            f"{', '.join(missing)} {verb} missing; add what is missing, or give model.checkpoint",
            "architecture",
            missing,
        )
        return None
    hidden, heads = keys["hidden_size"], keys["num_attention_heads"]
    if not _heads_fit(stage, keys):
        return None
    vocabulary = keys.pop("vocab_size", None) or vocab_size
    if vocabulary is None:
        return None
    gated = keys.get("activation") in GATED
    # Megatron-LM arguments.py: two thirds of 4h for the gated unit, in steps of 64.
    ffn = int(4 * hidden * 2 / 3 / 64) * 64 or 64 if gated else 4 * hidden
    defaults = {
        "ffn_hidden_size": ffn,
        "num_query_groups": heads,
        "kv_channels": hidden // heads,
        "max_position_embeddings": default_positions or 1024,
    }
    return ModelSpec(
        vocab_size=vocabulary,
        padded_vocab_size=padded_vocab_size(vocabulary, stage.recipe.parallel.tensor),
        **{**defaults, **keys},
    )


def _heads_fit(stage: StageContext, keys: dict[str, Any]) -> bool:
    """hidden % heads == 0 unless kv_channels is set, and heads % groups == 0."""
    hidden, heads = keys["hidden_size"], keys["num_attention_heads"]
    fine = True
    if "kv_channels" not in keys and hidden % heads:
        choices = closest(divisors(hidden), heads)
        stage.error(
            ("model", "num_attention_heads"),
            f"{heads} does not divide hidden_size {hidden}; choose {either(choices)}, or set kv_channels",
            "hidden_size % num_attention_heads == 0",
            heads,
            choices,
        )
        fine = False
    groups = keys.get("num_query_groups", heads)
    if heads % groups:
        choices = closest(divisors(heads), groups)
        stage.error(
            ("model", "num_query_groups"),
            f"{groups} does not divide num_attention_heads {heads}; choose {either(choices)}",
            "num_attention_heads % num_query_groups == 0",
            groups,
            choices,
        )
        fine = False
    width = keys.get("kv_channels", hidden // heads)
    rotated = int(width * keys.get("rotary_percent", 1.0))
    if keys.get("position_embedding") == "rope" and (rotated % 2 or not rotated):
        stage.error(
            ("model", "position_embedding"),
            f"rope rotates pairs of values, but of a head {rotated} are to be rotated; choose an even kv_channels, or "
            "another rotary_percent",
            "rope needs an even kv_channels",
        )
        fine = False
    return fine


def from_checkpoint(stage: StageContext, path: str) -> ModelSpec | None:
    """The architecture in `path`/model.json; findings where there is none or it cannot be read."""
    keys = ("model", "checkpoint")
    if is_archive(path):
        return _from_archive(stage, path)
    if is_huggingface(path):
        return _from_huggingface(stage, path)
    megatron = iteration_folder(Path(path))
    if megatron is not None:
        return _from_megatron(stage, megatron)
    file = CheckpointFolder(Path(path)).model
    if not Path(path).is_dir():
        stage.error(
            keys,
            f"{path}: does not exist; put the model's checkpoint there, or set model.checkpoint to where it is",
            "checkpoint exists",
            path,
        )
        return None
    try:
        with open_file(file) as opened:
            raw = json.loads(opened.read(_MAX_JSON_BYTES))
        model = from_dict(ModelSpec, raw)
    except FileNotFoundError:
        stage.error(
            keys,
            f"{path}: contains no model.json, so it is not an hpclm checkpoint; give a run's checkpoints "
            "folder, or one step-… folder in it",
            "checkpoint exists",
            path,
        )
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        stage.error(
            keys, f"{file}: cannot be read as a model ({error}); give a complete checkpoint", "checkpoint", path
        )
        return None
    broken = _broken(Path(path))
    if broken is not None:
        stage.error(keys, f"{broken}; copy the checkpoint again, or give another", "checkpoint is whole", path)
        return None
    return model


def _broken(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, or the one that a stage's folder points to, by its manifest and the
    sizes of its files; None where nothing is. Checksums are compared when it is read."""
    try:
        folder = path if CheckpointFolder(path).manifest.exists() else pointed(path, "best") or pointed(path, "latest")
        files = read_manifest(folder).files if folder is not None else {}
        for name, stored in files.items():
            file = inside(folder or path, name)
            size = file.stat().st_size if file.is_file() else None
            if size != stored.bytes:
                return f"{file}: {'missing' if size is None else f'{size} bytes, expected {stored.bytes}'}"
    except CheckpointError as error:
        return str(error)
    return None


def _from_archive(stage: StageContext, path: str) -> ModelSpec | None:
    """The architecture of a NeMo archive, its table padded for the stage's split."""
    from hpclm.formats.nemo.model_config import model_spec as archived_spec

    written = stage.recipe.model.vocab_size if stage.recipe.model else None
    try:
        with Archive(Path(path)) as archive:
            model = archived_spec(archive, written)
    except CheckpointError as error:
        stage.error(("model", "checkpoint"), f"{error}", "checkpoint", path)
        return None
    return _padded(stage, model)


def _from_huggingface(stage: StageContext, path: str) -> ModelSpec | None:
    """The architecture of a folder in transformers' format, its weights complete, its table padded for the split."""
    written = stage.recipe.model.vocab_size if stage.recipe.model else None
    try:
        model = model_spec(Path(path), written)
        located(Path(path), model)
    except CheckpointError as error:
        stage.error(("model", "checkpoint"), f"{error}", "checkpoint", path)
        return None
    return _padded(stage, model)


def _from_megatron(stage: StageContext, folder: Path) -> ModelSpec | None:
    """The architecture of a checkpoint of Megatron-LM, its weights complete, its table padded for the split."""
    written = stage.recipe.model.vocab_size if stage.recipe.model else None
    try:
        with Archive(folder) as archive:
            model = read_model(archive, written)
            read_weights(archive, model)
    except CheckpointError as error:
        stage.error(("model", "checkpoint"), f"{error}", "checkpoint", str(folder))
        return None
    return _padded(stage, model)


def _padded(stage: StageContext, model: ModelSpec) -> ModelSpec:
    """With as many rows in its table as the stage's split needs."""
    padded = padded_vocab_size(model.vocab_size, stage.recipe.parallel.tensor)
    return dataclasses.replace(model, padded_vocab_size=padded)


def agree(stage: StageContext, model: ModelSpec, source: str) -> ModelSpec:
    """`model` with the stage's own dropouts; a finding for each key that differs in the recipe."""
    changes: dict[str, Any] = {}
    for key, value in written_keys(stage).items():
        if key in _FREE:
            changes[key] = value
        elif value != getattr(model, key):
            theirs = getattr(model, key)
            stage.error(
                ("model", key),
                f"{value} does not agree with {theirs} of {source}; write {theirs}, or remove the key",
                "architecture agrees with its checkpoint",
                value,
                (theirs,),
            )
    return dataclasses.replace(model, **changes)
