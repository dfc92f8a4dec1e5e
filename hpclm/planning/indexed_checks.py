"""Indexed data sets that a stage pre-trains on: there, whole, and enough for what is wanted of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.core.errors import DataError
from hpclm.core.spec import IndexedData, ModelSpec, TokenizerSpec
from hpclm.data.corpus import tokenizer_files
from hpclm.data.corpus.tokenized_record import record_of
from hpclm.formats.indexed_dataset import IndexHeader, read_header
from hpclm.planning import base_model, lowering, vocabulary
from hpclm.planning.base_model import Earlier
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.schema.tokenizer_section import Tokenizer


def resolve(stage: StageContext, earlier: Mapping[str, Earlier], names: list[str]) -> IndexedData | None:
    """What the stage reads: data sets by their prefixes, or those of an earlier stage; None for none."""
    found, written = lowering.indexed(stage), stage.recipe.indexed
    if found is None or written is None or written.stage is None:
        return found
    parent = base_model.find_stage(stage, "indexed.stage", written.stage, earlier, ("tokenize",), names)
    if parent is None or not parent.base_model.data_sets:
        return None
    made, own = parent.context.recipe.tokenizer, stage.recipe.tokenizer
    if own is not None and made is not None and own != made:
        what = f"is not that of stage {written.stage}, which made the tokens; give the same files"
        stage.error(("tokenizer",), what, "tokens and tokenizer belong together")
    return replace(found, paths=list(parent.base_model.data_sets))


def parents(stage: StageContext) -> tuple[str, ...]:
    """The stage that makes the data sets, where one does."""
    written = stage.recipe.indexed
    return () if written is None or written.stage is None or "indexed" not in stage.task.sections else (written.stage,)


def check(stage: StageContext, source: IndexedData, model: ModelSpec | None) -> None:
    """Findings for what would end the job, and how often the data is read."""
    _sections(stage, source, model)
    if not stage.files or parents(stage):
        return
    for key, paths in _paths(source).items():
        _tokenizers(stage, key, paths)
    headers = {key: _headers(stage, key, paths) for key, paths in _paths(source).items()}
    train = [header for header in headers["paths"] if header is not None]
    if len(train) == len(source.paths):
        _parts(stage, source, train)
        _epochs(stage, source, train)


def _paths(source: IndexedData) -> dict[str, list[str]]:
    return {"paths": source.paths, "validation": source.validation}


def _sections(stage: StageContext, source: IndexedData, model: ModelSpec | None) -> None:
    recipe = stage.recipe
    if recipe.tokenizer is not None and recipe.tokenizer.train is not None:
        stage.error(
            ("tokenizer", "train"),
            "the indexed data is already tokenised; give the tokenizer it was made with",
            "tokenizer.train is for text",
        )
    rotated = model is not None and model.position_embedding == "rope"
    if rotated and source.reset_positions and not source.reset_attention:
        stage.warning(
            ("indexed", "reset_positions"),
            "has no effect with rope unless reset_attention is true: only distances count",
            "reset_positions needs learned positions",
        )


def check_whole_validation(stage: StageContext, source: IndexedData) -> None:
    """Of a weighted blend there is no whole validation set."""
    recipe = stage.recipe
    weighted = source.validation_weights if source.validation else source.weights
    if weighted is not None and recipe.trainer is not None and recipe.trainer.val_batches is None:
        stage.error(
            ("trainer", "val_batches"),
            "is missing: of a weighted blend there is no whole validation set; add it",
            "weights need val_batches",
        )


def _headers(stage: StageContext, key: str, paths: list[str]) -> list[IndexHeader | None]:
    found: list[IndexHeader | None] = []
    for index, prefix in enumerate(paths):
        try:
            header = read_header(prefix)
        except DataError as error:
            stage.error(("indexed", key, index), str(error), "indexed data exists", prefix)
            found.append(None)
            continue
        if header.dtype.startswith("float"):
            stage.error(("indexed", key, index), f"{prefix}: contains {header.dtype}, not tokens", "tokens", prefix)
        found.append(header)
    return found


def _tokenizers(stage: StageContext, key: str, prefixes: list[str]) -> None:
    """Data that another tokenizer made: its ids are then other words."""
    own = stage.recipe.tokenizer
    if own is None:
        return
    for index, prefix in enumerate(prefixes):
        record = record_of(prefix)
        if record is None:
            continue
        where, rule = ("indexed", key, index), "tokens and tokenizer belong together"
        differ = tokenizer_files.difference(own, record.spec.tokenizer)
        if differ is not None:
            what = f"{prefix}: was made with the tokenizer {differ[1]}, which is not {differ[0]}; give that one"
            stage.error(where, what, rule, prefix)
        _sizes(stage, own, record.spec.tokenizer, where, prefix)


def _sizes(stage: StageContext, own: Tokenizer, made: TokenizerSpec, where: tuple[str | int, ...], prefix: str) -> None:
    """Of files of two kinds: the recipe's may have further special tokens, the data's may not."""
    ours, theirs = own.tokenizer_file or own.vocab_file, made.tokenizer_file or made.vocab_file
    if ours is None or theirs is None or tokenizer_files.same_kind(own, made):
        return
    here, there = _entries(ours, own.tokenizer_file), _entries(theirs, made.tokenizer_file)
    if here is None or there is None or here == there:
        return
    what, rule = (
        f"{prefix}: was made with the tokenizer {theirs}, of {there} entries",
        "tokens and tokenizer belong together",
    )
    if there > here:
        stage.error(where, f"{what}, and {ours} has {here}; give that one", rule, prefix)
    else:
        stage.warning(where, f"{what}, and {ours} has {here}; are they the same but for added tokens?", rule, prefix)


def _entries(path: str, tokenizer_file: str | None) -> int | None:
    """None where the file cannot be read here."""
    try:
        return vocabulary.entries_in(Path(path), whole=tokenizer_file is not None)
    except vocabulary.UNREADABLE:
        return None


def _parts(stage: StageContext, source: IndexedData, headers: list[IndexHeader]) -> None:
    """A part without documents."""
    if source.validation:
        return
    for part in ("train", "validation"):
        low, high = source.bounds(part)
        counts = [round(high * header.sequences) - round(low * header.sequences) for header in headers]
        empty = [prefix for prefix, count in zip(source.paths, counts, strict=True) if count <= 0]
        if low >= high or not empty:
            continue
        sizes = f"{headers[source.paths.index(empty[0])].sequences} documents"
        if part == "train" or len(empty) < len(source.paths):
            stage.error(
                ("indexed", "split"),
                f"leaves no document of {empty[0]} ({sizes}) for {part}; choose another, or give indexed.validation",
                "every part has documents",
            )
        else:
            stage.warning(
                ("indexed", "split"),
                f"leaves no document of {sizes} for validation, so there is none; choose another",
                "every part has documents",
            )


def _epochs(stage: StageContext, source: IndexedData, headers: list[IndexHeader]) -> None:
    """Samples that the data gives, and how often the training reads it."""
    low, high = source.bounds("train")
    tokens = int(sum(header.tokens for header in headers) * (high - low))
    if tokens <= source.seq_length:
        stage.error(
            ("indexed", "seq_length"),
            f"{source.seq_length} is more than the {tokens} tokens there are to train on; give more data, or a "
            "shorter one",
            "one sample",
            source.seq_length,
        )
        return
    recipe = stage.recipe
    steps = lowering.max_steps(stage)
    if recipe.trainer is None or recipe.batch is None or steps is None:
        return
    wanted = (recipe.trainer.train_samples or steps * recipe.batch.global_size) * source.seq_length
    note = f"{tokens:,} tokens to train on (about); {steps:,} steps read {wanted:,}"
    if source.weights is None:
        note += f", {wanted / tokens:.2g} epochs"
    stage.info(("indexed", "paths"), note, "epochs", wanted / tokens)
