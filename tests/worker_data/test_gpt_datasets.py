"""Samples to pre-train on are those of megatron-core's own builder: the same tokens in the same order."""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, _get_ltor_masks_and_position_ids
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from hpclm.core import spec as plan
from hpclm.core.errors import DataError, HpclmError
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.data.ranks import blended_samples, gpt_datasets
from hpclm.data.ranks.gpt_datasets import index_record, open_datasets, prepare_indices
from hpclm.data.ranks.packed_layout import Layout, documents_layout

END = 0


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three data sets of documents of 1 to 60 tokens, each ended."""
    draw = random.Random(11)
    made = []
    for number, count in enumerate((120, 300, 45)):
        prefix = str(tmp_path_factory.mktemp("corpus") / f"c{number}_text_document")
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for _ in range(count):
            tokens = [draw.randrange(1, 500) for _ in range(draw.randrange(60))] + [END]
            builder.add_document(np.array(tokens, dtype=np.uint16), [len(tokens)])
        builder.finalize(f"{prefix}.idx")
        made.append(prefix)
    return made


def stage(
    source: plan.IndexedData, *, steps: int = 10, size: int = 8, val_batches: int | None = 2, seed: int = 1
) -> plan.StageSpec:
    return plan.StageSpec(
        run="r",
        stage="s",
        stage_dir="",
        task="pretrain",
        device="cpu",
        model=plan.ModelSpec(1, 8, 8, 1, 1, 8, 32, 512, 512),
        tokenizer=plan.TokenizerSpec("json"),
        parallel=ParallelSpec(1, 1, 1, 1, 1, 1),
        batch=plan.BatchSpec(size, 1, 1),
        trainer=plan.TrainerSpec("fp32", max_steps=steps, val_batches=val_batches, seed=seed),
        optim=plan.OptimSpec(1e-3),
        checkpoint=plan.CheckpointSpec(),
        indexed=source,
    )


class Tokens:
    vocab_size = None
    eod = END

    def __init__(self) -> None:
        self.unique_identifiers: dict[str, Any] = {}


def by_megatron(spec: plan.StageSpec, cache: Path) -> list[Any]:
    """Both parts as Megatron-LM's pretrain_gpt.py builds them."""
    source = spec.indexed
    assert source is not None
    size = spec.batch.global_batch_size
    wanted = None if spec.trainer.val_batches is None else spec.trainer.val_batches * size
    blend: dict[str, Any] = {
        "blend": (source.paths, source.weights),
        "split": ",".join(map(str, source.split)),
    }
    if source.validation:
        own = (source.validation, source.validation_weights)
        blend = {"blend_per_split": [(source.paths, source.weights), own, None]}
    config = GPTDatasetConfig(
        random_seed=spec.trainer.seed,
        sequence_length=source.seq_length,
        path_to_cache=str(cache),
        tokenizer=Tokens(),
        reset_position_ids=source.reset_positions,
        reset_attention_mask=source.reset_attention,
        eod_mask_loss=source.mask_end_loss,
        create_attention_mask=False,
        **blend,
    )
    if config.split_matrix is not None:
        config.split_matrix[2] = None  # a test part without documents is an endless loop of the library's
    sizes = [(spec.trainer.max_steps or 0) * size, wanted, 0]
    built: list[Any] = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    return built[:2]


def cases(corpora: list[str]) -> dict[str, plan.StageSpec]:
    one, two, three = corpora
    make = plan.IndexedData
    return {
        "one": stage(make([one], seq_length=16)),
        "many epochs": stage(make([three], seq_length=16, split=[9.0, 1.0, 0.0]), steps=60),
        "a last epoch of its own": stage(make([one], seq_length=8, split=[1.0, 1.0, 0.0]), steps=31),
        "another seed": stage(make([one], seq_length=16), seed=77),
        "long samples": stage(make([two], seq_length=200, split=[80.0, 20.0, 0.0]), steps=3),
        "weights": stage(make([one, two], [0.3, 0.7], seq_length=16, split=[90.0, 10.0, 0.0])),
        "three weights": stage(make(corpora, [5.0, 1.0, 1.0], seq_length=12, split=[8.0, 2.0, 0.0]), steps=25),
        "all once": stage(make(corpora, seq_length=16, split=[8.0, 2.0, 0.0]), steps=5, val_batches=None),
        "own validation": stage(make([one], validation=[two], seq_length=16)),
        "own validation, blended": stage(make([one, two], [1.0, 2.0], [three, two], [3.0, 1.0], seq_length=16)),
        "no validation": stage(make([one], seq_length=16, split=[1.0, 0.0, 0.0])),
        "masked": stage(make([one], seq_length=16, mask_end_loss=True, reset_positions=True)),
    }


NAMES = tuple(cases(["a", "b", "c"]))


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_megatrons_builder(alone: Any, corpora: list[str], tmp_path: Path, name: str) -> None:
    spec = cases(corpora)[name]
    source = spec.indexed
    assert source is not None
    prepare_indices(spec, tmp_path, source, END)
    ours = open_datasets(spec, tmp_path, source, END)
    theirs = by_megatron(spec, tmp_path / "theirs")
    for mine, other in zip((ours.train, ours.validation), theirs, strict=True):
        if other is None:
            assert mine is None
            continue
        assert mine is not None
        assert len(mine) == len(other) > 0
        for number in range(0, len(other), 1 + len(other) // 80):
            for key in ("tokens", "labels", "loss_mask", "position_ids"):
                assert torch.equal(mine[number][key], other[number][key]), (number, key)


def test_documents_see_themselves_alone() -> None:
    """The layout of a micro-batch against megatron-core's mask."""
    draw = random.Random(2)
    for _ in range(50):
        rows, length = draw.choice([1, 3]), draw.choice([1, 7, 16])
        tokens = torch.tensor([[draw.choice([END, 1, 2, 3]) for _ in range(length)] for _ in range(rows)])
        layout = Layout(documents_layout(tokens, END), rows * length)
        ours = torch.zeros(rows * length, rows * length, dtype=torch.bool)
        place = 0
        for count in layout.counts.tolist():
            ours[place : place + count, place : place + count] = True
            place += count
        ours &= torch.ones_like(ours).tril()
        theirs = torch.zeros_like(ours)
        for row in range(rows):
            hidden, _, _ = _get_ltor_masks_and_position_ids(tokens[row], END, True, True, False, True)
            at = slice(row * length, (row + 1) * length)
            theirs[at, at] = ~hidden[0]
        assert torch.equal(ours, theirs)


def test_indices_are_built_once_and_for_many_runs(corpora: list[str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = plan.IndexedData(corpora[:2], [1.0, 1.0], seq_length=16, cache=str(cache), split=[8.0, 2.0, 0.0])
    spec = stage(source)
    times: list[dict[Path, int]] = []
    for name in ("a", "b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        made = prepare_indices(spec, tmp_path / name, source, END)
        times.append({path: path.stat().st_mtime_ns for path in cache.iterdir()})
    assert times[0] == times[1] == times[2]
    victim = next(path for path in cache.glob("*shuffle_index.npy"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100])  # another run's disk was full
    assert prepare_indices(spec, tmp_path / "a", source, END) == made
    assert victim.read_bytes() == whole


def _prepare(spec: plan.StageSpec, folder: Path, source: plan.IndexedData) -> None:
    folder.mkdir()
    prepare_indices(spec, folder, source, END)
    open_datasets(spec, folder, source, END).train[0]


def test_two_runs_at_once_share_a_cache(corpora: list[str], tmp_path: Path) -> None:
    source = plan.IndexedData([corpora[1]], seq_length=16, cache=str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_prepare, args=(stage(source), tmp_path / str(number), source)) for number in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 4


def test_a_node_that_does_not_see_the_indices_says_so(
    corpora: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plan.IndexedData([corpora[0]], seq_length=16)
    spec = stage(source)
    prepare_indices(spec, tmp_path, source, END)
    monkeypatch.setattr(gpt_datasets, "_SEEN_S", 0.0)
    victim = next((tmp_path / "indices").glob("*document_index.npy"))
    victim.unlink()
    with pytest.raises(HpclmError, match="must be on a file system that all nodes share"):
        open_datasets(spec, tmp_path, source, END)
    index_record(tmp_path).unlink()
    with pytest.raises(HpclmError, match=r"indices.json: rank 0 wrote it"):
        open_datasets(spec, tmp_path, source, END)


def test_an_index_that_is_a_pickle_is_refused(corpora: list[str], tmp_path: Path) -> None:
    source = plan.IndexedData([corpora[0]], seq_length=16)
    spec = stage(source)
    prepared = prepare_indices(spec, tmp_path, source, END)
    victim = next((tmp_path / "indices").glob("*document_index.npy"))
    np.save(victim, np.array([print], dtype=object), allow_pickle=True)
    data = victim.read_bytes()
    size = prepared.files[victim.name]
    victim.write_bytes(data[:size].ljust(size, b"\0"))
    with pytest.raises(DataError, match="not an index"):
        open_datasets(spec, tmp_path, source, END)


def test_too_little_data_is_said(corpora: list[str], tmp_path: Path) -> None:
    small = plan.IndexedData([corpora[2]], seq_length=4000)
    with pytest.raises(DataError, match=r"the training part has \d+ tokens in 44 sequences, less than one sample"):
        prepare_indices(stage(small), tmp_path, small, END)
    gone = replace(small, paths=["/none"])
    with pytest.raises(DataError, match=r"/none.bin: does not exist"):
        prepare_indices(stage(gone), tmp_path, gone, END)


def test_an_empty_validation_part_leaves_validation_out(corpora: list[str], tmp_path: Path) -> None:
    source = plan.IndexedData([corpora[2]], seq_length=16, split=[999.0, 1.0, 0.0])
    spec = stage(source)
    prepare_indices(spec, tmp_path, source, END)
    assert open_datasets(spec, tmp_path, source, END).validation is None


def test_ids_that_the_model_does_not_have_are_named_before_the_first_step(corpora: list[str], tmp_path: Path) -> None:
    """Over tensor parallel ranks, embeddings of such ids are zeros, and nothing would fail."""
    made = stage(plan.IndexedData([corpora[0]], validation=[corpora[2]], seq_length=16))
    largest = max(int(np.fromfile(f"{prefix}.bin", dtype=np.uint16).max()) for prefix in (corpora[0], corpora[2]))
    fits, small = (replace(made, model=replace(made.model, vocab_size=size)) for size in (largest + 1, largest))
    source = made.indexed
    assert source is not None
    prepare_indices(fits, tmp_path / "fits", source, END)
    with pytest.raises(DataError, match=rf"\.bin: has the id {largest} at token \d+, .* {largest} entries"):
        prepare_indices(small, tmp_path / "small", source, END)


@pytest.mark.parametrize("strange", [600, -2])
def test_and_where_only_a_sample_shows_them(
    corpora: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strange: int
) -> None:
    """Of a large data set a part is looked at before."""
    prefix = str(tmp_path / "large_text_document")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for number in range(50):
        tokens = np.full(20, 7, dtype=np.int32)
        tokens[10] = strange if number == 25 else 7
        builder.add_document(tokens, [20])
    builder.finalize(f"{prefix}.idx")
    monkeypatch.setattr(blended_samples, "_BLOCK", 100)
    monkeypatch.setattr(blended_samples, "_BLOCKS", 3)
    source = plan.IndexedData([prefix], seq_length=16, split=[1.0, 0.0, 0.0])
    made = replace(stage(source, steps=8), model=plan.ModelSpec(1, 8, 8, 1, 1, 8, 32, 512, 512))
    with pytest.raises(DataError, match=f"has the id {strange} at token 510"):
        prepare_indices(made, tmp_path / "seen", source, END)  # in the middle block
    monkeypatch.setattr(blended_samples, "_BLOCKS", 2)
    prepare_indices(made, tmp_path / "data", source, END)
    train = open_datasets(made, tmp_path / "data", source, END).train
    said = []
    for number in range(len(train)):
        try:
            train[number]
        except DataError as error:
            said.append(str(error))
    assert 1 <= len(said) <= 2  # a sample's last label is the next one's first token
    assert all(f"large_text_document.bin: has the id {strange} in sample" in one for one in said)
