"""Samples to pre-train on: megatron-core's GPTDataset over indexed data sets, one or a blend of several.

Which documents are in a sample, and the order of samples, are megatron-core's: those of Megatron-LM with the same
paths, weights, split, seed and number of samples. The indices are built once, on rank 0 while the others wait, in a
folder that all ranks read.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

from hpclm.core import heartbeat
from hpclm.core.errors import DamagedError, DataError, HpclmError
from hpclm.core.files import sync
from hpclm.core.indexed_files import bin_path, idx_path
from hpclm.core.locks import exclusive
from hpclm.core.logging import log
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.spec import IndexedData, StageSpec
from hpclm.data.ranks.blended_samples import Blend, look_at_ids
from hpclm.formats.indexed_dataset import read_header

# Samples that a data set of a blend has in reserve (BlendedMegatronDatasetConfig.mid_level_dataset_surplus).
SURPLUS = 0.005
_WAIT_S = 86_400.0
_SEEN_S = 60.0
_PARTS = {"train": Split.train, "validation": Split.valid}


@dataclass(frozen=True)
class Part:
    """The training or validation part: where it comes from.

    Attributes:
        weights: normalised; None with one path, or to take every sample of all once.
        bounds: the share of each data set's sequences, from and to.
        samples: how many are wanted; None: all, once.
    """

    paths: list[str]
    weights: list[float] | None
    bounds: tuple[float, float]
    samples: int | None


@dataclass(frozen=True)
class Prepared:
    """`indices.json`. `mark`: of everything that the indices depend on; `cache`: their folder; `files`: their sizes.

    Attributes:
        epoch_samples: training samples when every document is read once.
        parts: which of training and validation there are; none where an earlier version did not say.
    """

    mark: str
    cache: str
    epoch_samples: int
    files: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)


class Samples(Protocol):
    """The samples of a part; neighbours in the text overlap by one token.

    A sample has `tokens`, `labels` and `position_ids` int64 and `loss_mask` fp32, each [seq_length].
    """

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Datasets:
    """Both parts by sample.

    Attributes:
        validation: None where there is none.
        epoch_samples: training samples when every document is read once.
        is_shuffled: whether `train` is in the order in which it is to be read.
    """

    train: Samples
    validation: Samples | None
    epoch_samples: int
    is_shuffled: bool


def index_record(folder: Path) -> Path:
    return folder / "indices.json"


def prepare_indices(spec: StageSpec, folder: Path, source: IndexedData, end: int) -> Prepared:
    """Build the indices of both parts, unless they are there. For one rank, while the others wait.

    Args:
        folder: the stage's data.
        end: id of the end token.

    Raises DataError where a data set is missing, damaged or too small.
    """
    cache = Path(source.cache) if source.cache is not None else folder / "indices"
    mark = _mark(spec, source, end)
    known = _known(index_record(folder), mark)
    if known is not None and not _missing(known):
        return known
    epoch = _epoch_samples(source)
    look_at_ids(list(dict.fromkeys([*source.paths, *source.validation])), spec.model.vocab_size)
    parts = parts_of(spec, source, epoch)
    cache.mkdir(parents=True, exist_ok=True)
    busy = f"{cache}: another run has built indices there for a day"
    told = lambda: log(f"waiting for {cache}, in which another run builds indices")  # noqa: E731 - short
    with exclusive(cache, busy, wait_s=_WAIT_S, waiting=told):
        shared = cache / f"{mark}.json"
        made = _known(shared, mark)
        if made is None or _missing(made):
            made = Prepared(mark, str(cache), epoch, _build(spec, source, parts, end, cache, mark), list(parts))
            write_sealed(shared, to_dict(made))
    write_sealed(index_record(folder), to_dict(made))
    return made


def _known(path: Path, mark: str) -> Prepared | None:
    try:
        raw = read_sealed(path)
        found = None if raw is None else from_dict(Prepared, raw, ignore_unknown=True)
    except (DamagedError, OSError, ValueError):
        return None
    return found if found is not None and found.mark == mark else None


def _missing(prepared: Prepared) -> str | None:
    """The first file that is not there as it was written."""
    for name, size in prepared.files.items():
        path = Path(prepared.cache) / Path(name).name
        if not path.is_file() or path.stat().st_size != size:
            return str(path)
    return None


def _mark(spec: StageSpec, source: IndexedData, end: int) -> str:
    own = {**to_dict(source), "cache": None}
    facts: list[object] = [own, end, spec.trainer.seed, spec.trainer.max_steps, spec.trainer.max_epochs]
    facts += [spec.batch.global_batch_size, spec.trainer.val_batches]
    if spec.trainer.train_samples is not None:
        facts += [spec.trainer.train_samples]
    for prefix in [*source.paths, *source.validation]:
        for path in (bin_path(prefix), idx_path(prefix)):
            if not path.is_file():
                raise DataError(f"{path}: does not exist (indexed.paths)")
            facts.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _epoch_samples(source: IndexedData) -> int:
    """Training samples when every document is read once; each data set's tokens by itself."""
    low, high = source.bounds("train")
    total = 0
    for prefix in source.paths:
        low_level = _open(prefix)
        lengths = low_level.sequence_lengths[_slice(len(low_level.sequence_lengths), (low, high))]
        tokens = int(np.sum(lengths, dtype=np.int64))
        if tokens <= source.seq_length:
            raise DataError(
                f"{prefix}: the training part has {tokens} tokens in {len(lengths)} sequences, less than one sample of "
                f"seq_length {source.seq_length} + 1; give more data, or another split"
            )
        total += (tokens - 1) // source.seq_length
    return total


def _slice(count: int, bounds: tuple[float, float]) -> slice:
    """As BlendedMegatronDatasetBuilder rounds."""
    return slice(round(bounds[0] * float(count)), round(bounds[1] * float(count)))


def parts_of(spec: StageSpec, source: IndexedData, epoch_samples: int, known: Sequence[str] = ()) -> dict[str, Part]:
    """Which part takes what from which data set. `known`: the parts that there are; nothing is then opened."""
    size = spec.batch.global_batch_size
    epochs = (spec.trainer.max_epochs or 1) * max(1, epoch_samples // size)
    steps = spec.trainer.max_steps or epochs
    samples = spec.trainer.train_samples or size * steps
    train = Part(source.paths, _normalised(source.weights), source.bounds("train"), samples)
    found = {"train": train}
    wanted = None if spec.trainer.val_batches is None else spec.trainer.val_batches * size
    if source.validation:
        weights = _normalised(source.validation_weights)
        found["validation"] = Part(source.validation, weights, (0.0, 1.0), wanted)
        return found
    bounds = source.bounds("validation")
    if known:
        if "validation" in known:
            found["validation"] = Part(source.paths, _normalised(source.weights), bounds, wanted)
    elif bounds[0] < bounds[1]:
        empty = [prefix for prefix in source.paths if _is_empty(prefix, bounds)]
        if len(empty) == len(source.paths):
            log("the validation part of the data has no document (indexed.split); there is no validation")
        elif empty:
            raise DataError(f"{empty[0]}: its validation part has no document (indexed.split); give indexed.validation")
        else:
            found["validation"] = Part(source.paths, _normalised(source.weights), bounds, wanted)
    return found


def _is_empty(prefix: str, bounds: tuple[float, float]) -> bool:
    low_level = _open(prefix)
    return not np.any(low_level.sequence_lengths[_slice(len(low_level.sequence_lengths), bounds)])


def _normalised(weights: list[float] | None) -> list[float] | None:
    return None if weights is None else [float(one) for one in np.array(weights) / np.sum(np.array(weights))]


class _EndToken:
    """What GPTDataset asks a tokenizer for. It has no padding token: no label is left out for its sake."""

    vocab_size = None

    def __init__(self, end: int) -> None:
        self.eod = end
        self.unique_identifiers: dict[str, Any] = {}


def _config(spec: StageSpec, source: IndexedData, end: int, cache: Path | None) -> Any:
    return GPTDatasetConfig(
        random_seed=spec.trainer.seed,
        sequence_length=source.seq_length,
        blend=(source.paths, None),
        split=",".join(map(str, source.split)),
        path_to_cache=None if cache is None else str(cache),
        tokenizer=_EndToken(end),
        reset_position_ids=source.reset_positions,
        reset_attention_mask=False,  # the layout of documents is made for the whole micro-batch
        eod_mask_loss=source.mask_end_loss,
        create_attention_mask=False,
    )


def _open(prefix: str) -> Any:
    read_header(prefix)  # a damaged pair is named before the library maps it
    return GPTDataset.build_low_level_dataset(prefix, _Plain)


class _Plain:
    """The fields of a configuration that opening an indexed data set reads."""

    object_storage_cache_path = None
    sequences_per_dataset = None
    mmap_bin_files = True
    fast_cache_load = False
    token_dtype_code = None


def _members(config: Any, part: Part, split: Any) -> list[Any]:
    """A GPTDataset for each path."""
    counts: list[int | None] = [part.samples]
    if len(part.paths) > 1:
        counts = [None] * len(part.paths)
        if part.weights is not None and part.samples is not None:
            counts = [math.ceil(math.ceil(part.samples * weight) * (1 + SURPLUS)) for weight in part.weights]
    members = []
    for prefix, count in zip(part.paths, counts, strict=True):
        low_level = _open(prefix)
        chosen = _slice(len(low_level.sequence_lengths), part.bounds)
        documents = np.arange(chosen.start, chosen.stop, dtype=np.int32)
        if not np.any(low_level.sequence_lengths[chosen]):
            raise DataError(f"{prefix}: the {split.name} part has no tokens; give more data, or another split")
        heartbeat.beat()
        members.append(GPTDataset(low_level, prefix, documents, count, split, config))
    return members


def _build(
    spec: StageSpec, source: IndexedData, parts: dict[str, Part], end: int, cache: Path, mark: str
) -> dict[str, int]:
    """Build the indices aside and move them into the cache, so that a file there is always whole."""
    aside = cache / f".building-{mark[:16]}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    config = _config(spec, source, end, aside)
    for name, part in parts.items():
        members = _members(config, part, _PARTS[name])
        if len(members) > 1:
            _write_blend(aside, mark, name, part, members)
    files = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
    for name in files:
        sync(aside / name)
        (aside / name).replace(cache / name)
    aside.rmdir()
    sync(cache)
    return files


def _blend_files(cache: Path, mark: str, name: str) -> tuple[Path, Path]:
    return cache / f"{mark}-blend-{name}-dataset.npy", cache / f"{mark}-blend-{name}-sample.npy"


def _write_blend(cache: Path, mark: str, name: str, part: Part, members: list[Any]) -> None:
    """Which data set, and which of its samples, each sample of the blend is (megatron-core's BlendedDataset)."""
    sizes = [len(member) for member in members]
    if part.samples is None:
        size, weights = sum(sizes), None
    elif part.weights is None:
        size, weights = min(part.samples, sum(sizes)), _normalised([float(one) for one in sizes])
    else:
        size = sum(math.ceil(part.samples * weight) for weight in part.weights)
        weights = _normalised(part.weights)
    dataset, sample = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
    if weights is None:
        helpers.build_exhaustive_blending_indices(dataset, sample, sizes, len(members))
    else:
        helpers.build_blending_indices(dataset, sample, weights, len(members), size, False)
    taken = np.bincount(dataset, minlength=len(members))
    for member, count in zip(members, taken, strict=True):
        if count > len(member):
            raise DataError(f"{member.dataset_path}: the blend takes {count} samples of its {len(member)}")
    dataset_file, sample_file = _blend_files(cache, mark, name)
    np.save(dataset_file, dataset, allow_pickle=False)
    np.save(sample_file, sample, allow_pickle=False)


def open_datasets(spec: StageSpec, folder: Path, source: IndexedData, end: int) -> Datasets:
    """Both parts, by the indices that rank 0 has built. Raises HpclmError where this rank does not see them."""
    mark = _mark(spec, source, end)
    prepared = _seen(index_record(folder), mark)
    cache = Path(prepared.cache)
    _refuse_pickles(cache, prepared)
    config = _config(spec, source, end, cache)
    opened: dict[str, Blend] = {}
    for name, part in parts_of(spec, source, prepared.epoch_samples, prepared.parts).items():
        members = _members(config, part, _PARTS[name])
        blend = None
        if len(members) > 1:
            dataset, sample = (np.load(path, mmap_mode="r") for path in _blend_files(cache, mark, name))
            blend = dataset, sample
        opened[name] = Blend(members, blend, spec.model.vocab_size)
    return Datasets(opened["train"], opened.get("validation"), prepared.epoch_samples, is_shuffled=True)


def _seen(record: Path, mark: str) -> Prepared:
    """What rank 0 has written, once this node sees all of it."""
    until = time.monotonic() + _SEEN_S
    while True:
        found = _known(record, mark)
        missing = str(record) if found is None else _missing(found)
        if found is not None and missing is None:
            return found
        if time.monotonic() > until:
            raise HpclmError(
                f"{missing}: rank 0 wrote it, but it is not seen on this node; indexed.cache and the runs folder must "
                "be on a file system that all nodes share"
            )
        heartbeat.beat()
        time.sleep(0.2)


def _refuse_pickles(cache: Path, prepared: Prepared) -> None:
    """megatron-core loads arrays of objects too, which are pickles; its indices have none."""
    for name in prepared.files:
        path = cache / Path(name).name
        if path.suffix != ".npy":
            continue
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not an index ({error}); remove {cache}") from None
