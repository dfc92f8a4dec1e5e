"""Train a whole GPT on text."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hpclm.core.logging import log
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.data.ranks.sampler import GlobalBatchSampler
from hpclm.data.ranks.text_corpus import TextDataset
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.engines.megatron.ranks.stage_models import config_for, start_weights, write_model_card
from hpclm.engines.megatron.ranks.training import Trainer
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager


def run(context: StageContext) -> dict[str, object]:
    """Tokenizer, data, model, training; returns the stage's result."""
    spec = context.spec
    assert spec.text is not None
    context.progress.update(phase="data")
    tokenizer, train, validation = _data(context)
    config = config_for(context, variable_lengths=False)
    model = LanguageModel(config, start_weights(context, config), None, frozen=False)

    def finish(folder: Path) -> None:
        write_model_card(folder, spec)
        tokenizer.save(folder)

    context.on_first_rank(lambda: finish(context.paths.checkpoints))
    batches = TextBatches(context, train, validation)
    manager = CheckpointManager(context.paths.checkpoints, spec.checkpoint, finish)
    result = Trainer(spec, context.groups, model, batches, manager, context.progress, context.stop).fit()
    return {**result, "train_samples": len(train), "validation_samples": 0 if validation is None else len(validation)}


def _data(context: StageContext) -> tuple[Tokenizer, TextDataset, TextDataset | None]:
    """The tokenizer and both datasets (no validation at a fraction of 0), prepared before the ranks met."""
    spec, folder = context.spec, context.paths.data
    tokenizer = Tokenizer.load(folder)
    train = TextDataset(folder, spec, "train")
    assert spec.text is not None
    validation = TextDataset(folder, spec, "validation") if spec.text.validation_fraction > 0 else None
    if context.groups.rank == 0 and len(train) < spec.batch.global_batch_size:
        log(
            f"{len(train)} samples of text do not fill a global batch of {spec.batch.global_batch_size}; "
            "they are repeated"
        )
    return tokenizer, train, validation


class TextBatches:
    """Windows of text as micro-batches (see `training.Batches`)."""

    def __init__(self, context: StageContext, train: TextDataset, validation: TextDataset | None) -> None:
        spec, groups = context.spec, context.groups
        self.train_set, self.validation_set, self.device = train, validation, groups.device
        batch = spec.batch
        sampler = functools.partial(
            GlobalBatchSampler,
            global_batch_size=batch.global_batch_size,
            micro_batch_size=batch.micro_batch_size,
            data_rank=groups.data_rank,
            data_size=groups.data_size,
        )
        self.order = sampler(len(train), seed=spec.trainer.seed)
        if validation is not None:
            self.validation_order = sampler(len(validation), seed=None)
        self.val_batches = spec.trainer.val_batches
        self.steps_per_epoch = self.order.steps_per_epoch

    def train(self, step: int) -> list[TrainingBatch]:
        return [self._batch(self.train_set, rows) for rows in self.order.step(step)]

    def weight(self, step: int) -> None:
        """Every micro-batch has the same number of tokens: the mean of their means is the mean."""

    def validation(self) -> Iterator[list[TrainingBatch]]:
        if self.validation_set is None:
            return
        groups = self.validation_order.all_rows()
        for micro_batches in itertools.islice(groups, self.val_batches):
            yield [self._batch(self.validation_set, rows) for rows in micro_batches]

    def _batch(self, dataset: TextDataset, rows: list[int]) -> TrainingBatch:
        """Rows of a micro-batch; a row of -1 is padding and does not count."""
        windows = torch.from_numpy(np.stack([dataset[max(row, 0)] for row in rows]).astype(np.int64))
        tokens, labels = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        weight = torch.tensor([float(row >= 0) for row in rows]).unsqueeze(1)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        batch = TrainingBatch(
            tokens=tokens,
            labels=labels,
            loss_mask=weight.expand_as(tokens).contiguous(),
            position_ids=positions.contiguous(),
        )
        return batch.to(self.device)
