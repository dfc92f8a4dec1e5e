"""The data of a pre-training stage, prepared once, while the others wait, and opened by each of them."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.spec import StageSpec
from hpclm.data.ranks.gpt_datasets import Datasets, open_datasets, prepare_indices
from hpclm.data.ranks.text_corpus import Windows, prepare_text
from hpclm.data.tokenizers import Tokenizer, load_tokenizer


def prepare(spec: StageSpec, folder: Path) -> None:
    """Tokenise plain text into indexed data sets, or build the indices of the recipe's; for one rank.

    Raises DataError where the data is missing, damaged or too little.
    """
    if spec.indexed is None:
        prepare_text(spec, folder)
        return
    tokenizer = load_tokenizer(spec.tokenizer, None if spec.base is None else Path(spec.base))
    tokenizer.check_fits(spec.model.padded_vocab_size)
    tokenizer.save(folder)
    prepare_indices(spec, folder, spec.indexed, tokenizer.eos_id)


def open_prepared(spec: StageSpec, folder: Path, tokenizer: Tokenizer) -> Datasets:
    """What `prepare` has made."""
    if spec.indexed is not None:
        return open_datasets(spec, folder, spec.indexed, tokenizer.eos_id)
    assert spec.text is not None
    train = Windows(folder, "train", spec.text.seq_length)
    validation = Windows(folder, "validation", spec.text.seq_length) if spec.text.validation_fraction > 0 else None
    return Datasets(train, validation, len(train), is_shuffled=False)
