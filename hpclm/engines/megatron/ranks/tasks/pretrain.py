"""Train a whole GPT on text or on indexed data sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from hpclm.core.logging import log
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.data.ranks.gpt_datasets import Datasets, Samples
from hpclm.data.ranks.packed_layout import documents_layout
from hpclm.data.ranks.pretraining_data import open_prepared
from hpclm.data.ranks.sampler import GlobalBatchSampler
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.context_parallel import own_part
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.engines.megatron.ranks.stage_models import config_for, start_weights, write_model_card
from hpclm.engines.megatron.ranks.training import train
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager
from hpclm.training.ranks.first_rank import on_first_rank


def run(context: StageContext) -> dict[str, object]:
    """Tokenizer, data, model, training; returns the stage's result."""
    spec = context.spec
    context.progress.update(phase="data")
    tokenizer = Tokenizer.load(context.paths.data)
    data = open_prepared(spec, context.paths.data, tokenizer)
    batches = PretrainingBatches(context, data, tokenizer.eos_id)
    config = config_for(context, variable_lengths=False)
    models = [LanguageModel(config, gpt, None, frozen=False) for gpt in start_weights(context, config)]

    def finish(folder: Path) -> None:
        write_model_card(folder, spec)
        tokenizer.save(folder)

    on_first_rank(lambda: finish(context.paths.checkpoints))
    manager = CheckpointManager(context.paths.checkpoints, spec.checkpoint, finish)
    result = train(context, models, batches, manager)
    return {
        **result,
        "train_samples": data.epoch_samples,
        "validation_samples": 0 if data.validation is None else len(data.validation),
    }


class PretrainingBatches:
    """Samples as micro-batches (see `training.Batches`): those of an indexed data set in its order, which is shuffled,
    global batch after global batch, as Megatron-LM's MegatronPretrainingSampler takes them; those of plain text in
    another order each epoch.
    """

    def __init__(self, context: StageContext, data: Datasets, end: int) -> None:
        spec, groups = context.spec, context.groups
        self.groups = groups
        self.data, self.device, self.end = data, groups.device, end
        self.resets = spec.indexed is not None and spec.indexed.reset_attention
        batch = spec.batch
        self.size, self.schedule = batch.global_batch_size, batch.schedule
        self.order = GlobalBatchSampler(
            len(data.train),
            global_batch_size=self.size,
            micro_batch_size=batch.micro_batch_size,
            data_rank=groups.data_rank,
            data_size=groups.data_size,
            seed=spec.trainer.seed,
        )
        self.share = self.order.share
        self.val_batches = spec.trainer.val_batches
        self.steps_per_epoch = max(1, data.epoch_samples // self.size)
        if groups.rank == 0 and data.epoch_samples < self.size:
            log(f"{data.epoch_samples} samples do not fill a global batch of {self.size}; they are repeated")

    def train(self, step: int) -> list[TrainingBatch]:
        count = len(self.data.train)
        if not self.data.is_shuffled:
            return [self._batch(self.data.train, rows) for rows in self.order.step(step)]
        rows = [number % count for number in range(self.schedule.consumed(step), self.schedule.consumed(step + 1))]
        return [self._batch(self.data.train, rows) for rows in self.share(rows)]

    def weight(self, step: int) -> None:
        """Every micro-batch counts the same, as in Megatron-LM: the mean of their means is the mean."""

    def validation(self) -> Iterator[list[TrainingBatch]]:
        """The same samples each time; a row of -1 fills the last batch up and does not count."""
        samples = self.data.validation
        if samples is None:
            return
        for start in itertools.islice(range(0, len(samples), self.size), self.val_batches):
            rows = list(range(start, min(start + self.size, len(samples))))
            rows += [-1] * (self.size - len(rows))
            yield [self._batch(samples, micro_batch) for micro_batch in self.share(rows)]

    def _batch(self, samples: Samples, rows: list[int]) -> TrainingBatch:
        found = [samples[max(row, 0)] for row in rows]
        stacked = {name: torch.stack([one[name] for one in found]) for name in _FIELDS}
        counted = torch.tensor([float(row >= 0) for row in rows]).unsqueeze(1)
        stacked["loss_mask"] = stacked["loss_mask"] * counted
        layout = documents_layout(stacked["tokens"], self.end) if self.resets else None
        if layout is not None:
            stacked = {name: one.view(1, -1) for name, one in stacked.items()}
        batch = TrainingBatch(
            tokens=stacked["tokens"],
            labels=stacked["labels"],
            position_ids=stacked["position_ids"],
            loss_mask=stacked["loss_mask"],
            layout=layout,
        )
        if self.groups.context_size > 1:
            batch = own_part(batch, self.groups.context_rank, self.groups.context_size)
        return batch.to(self.device)


_FIELDS = ("tokens", "labels", "position_ids", "loss_mask")
