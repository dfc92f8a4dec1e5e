"""The data of a pre-training stage, prepared once, before its ranks meet, and opened by each of them."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.spec import IndexedData, StageSpec
from hpclm.data.ranks.gpt_datasets import Datasets, open_datasets, prepare_indices
from hpclm.data.ranks.text_corpus import prepare_text
from hpclm.data.tokenizers import Tokenizer, load_tokenizer


def prepare(spec: StageSpec, folder: Path) -> None:
    """Tokenise plain text, where the recipe has it, and build the indices of the samples; for one rank.

    Raises DataError where the data is missing, damaged or too little.
    """
    if spec.text is not None:
        prepare_text(spec, folder)
    else:
        tokenizer = load_tokenizer(spec.tokenizer, None if spec.base is None else Path(spec.base))
        tokenizer.check_fits(spec.model.padded_vocab_size)
        tokenizer.save(folder)
    prepare_indices(spec, folder, source_of(spec, folder), Tokenizer.load(folder).eos_id)


def open_prepared(spec: StageSpec, folder: Path, tokenizer: Tokenizer) -> Datasets:
    """What `prepare` has made."""
    return open_datasets(spec, folder, source_of(spec, folder), tokenizer.eos_id)


def source_of(spec: StageSpec, folder: Path) -> IndexedData:
    """The indexed data sets: the recipe's, or those that were made from its text."""
    if spec.indexed is not None:
        return spec.indexed
    assert spec.text is not None
    validation = [str(folder / "validation")] if spec.text.validation_fraction > 0 else []
    return IndexedData(
        [str(folder / "train")],
        validation=validation,
        split=[1.0, 0.0, 0.0],
        seq_length=spec.text.seq_length,
        reshuffle=True,
    )
