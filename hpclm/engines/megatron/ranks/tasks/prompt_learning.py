"""Prompt-tuning and p-tuning: a frozen GPT and the virtual tokens trained for it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.core.logging import log
from hpclm.core.spec import PromptData
from hpclm.data.examples import PromptDataset
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.data.ranks.packing import pack
from hpclm.data.ranks.sampler import GlobalBatchSampler
from hpclm.data.tokenizers import Tokenizer, load_tokenizer
from hpclm.engines.megatron.ranks import frozen_passes
from hpclm.engines.megatron.ranks.answering import Answerer
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.engines.megatron.ranks.stage_models import (
    base_checkpoint,
    config_for,
    load_base,
    write_model_card,
    write_prompts_card,
)
from hpclm.engines.megatron.ranks.tasks.starting_prompts import starting_prompts
from hpclm.engines.megatron.ranks.training import train
from hpclm.formats.ranks.checkpoint_manager import CheckpointManager
from hpclm.metrics import score_by
from hpclm.training.ranks.first_rank import on_first_rank


def run(context: StageContext) -> dict[str, object]:
    """Data, frozen model, prompts, training; returns the stage's result."""
    spec, _groups = context.spec, context.groups
    assert spec.data is not None
    context.progress.update(phase="data")
    tokenizer = load_tokenizer(spec.tokenizer, base_checkpoint(spec))
    tokenizer.check_fits(spec.model.padded_vocab_size)
    config = config_for(context, variable_lengths=True, frozen=True)
    gpt = load_base(context, config)
    card, prompts = starting_prompts(context, config, gpt, tokenizer)
    batches = PromptBatches(context, tokenizer, spec.data, card)

    def finish(folder: Path) -> None:
        write_model_card(folder, spec)
        write_prompts_card(folder, card)
        tokenizer.save(folder)

    on_first_rank(lambda: finish(context.paths.checkpoints))
    model = LanguageModel(config, gpt, prompts, frozen=True)
    manager = CheckpointManager(context.paths.checkpoints, spec.checkpoint, finish)
    metrics = answers_scored(context, model, tokenizer, card) if spec.trainer.val_metrics else None
    result = train(context, [model], batches, manager, metrics)
    return {**result, **batches.counts()}


def answers_scored(
    context: StageContext, model: LanguageModel, tokenizer: Tokenizer, card: PromptsCard
) -> Callable[[], dict[str, float]]:
    """Scores of the model's answers to the validation rows, by the recipe's `val_metrics`, at every call."""
    spec = context.spec
    assert spec.data is not None
    assert spec.generation is not None
    room = spec.model.max_position_embeddings - spec.generation.max_new_tokens
    # in NeMo's semantics a prompt would show the answer in its row
    data = replace(spec.data, max_seq_length=min(spec.data.max_seq_length, room), semantics="strict")
    rows = PromptDataset(data.validation, card.task_templates, tokenizer, data, training=False, frozen=card.kept)
    known = [example for example in rows.examples if example.answer is not None][: spec.trainer.val_metric_rows]
    answers = [example.answer or "" for example in known]

    def score() -> dict[str, float]:
        context.progress.update(phase="answering")
        assert spec.generation is not None
        made = Answerer(context.groups, model, tokenizer, spec.generation, trains_on=True).texts(known)
        return score_by(spec.trainer.val_metrics, made, [[answer] for answer in answers])

    return score


class PromptBatches:
    """Rows of the task files as micro-batches (see `training.Batches`)."""

    def __init__(self, context: StageContext, tokenizer: Tokenizer, data: PromptData, card: PromptsCard) -> None:
        spec, groups = context.spec, context.groups
        self.device, self.pad_id = groups.device, tokenizer.pad_id
        self.multiple_of = groups.tensor_size if spec.parallel.sequence_parallel else 1
        self.few_shapes = frozen_passes.rounds_sizes(spec, groups)
        self.val_batches = spec.trainer.val_batches
        self.semantics = data.semantics
        dataset = functools.partial(
            PromptDataset,
            templates=card.task_templates,
            tokenizer=tokenizer,
            data=data,
            training=True,
            frozen=card.kept,
        )
        self.train_set = dataset(data.train)
        self.validation_set = dataset(data.validation) if data.validation else None
        sampler = functools.partial(
            GlobalBatchSampler,
            global_batch_size=spec.batch.global_batch_size,
            micro_batch_size=spec.batch.micro_batch_size,
            data_rank=groups.data_rank,
            data_size=groups.data_size,
        )
        self.order = sampler(len(self.train_set), seed=spec.trainer.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        if self.validation_set is not None:
            self.validation_order = sampler(len(self.validation_set), seed=None)
        if groups.rank == 0:
            self._log_rows_left_out(data)

    def _log_rows_left_out(self, data: PromptData) -> None:
        for what, found in (("training", self.train_set), ("validation", self.validation_set)):
            if found is not None and found.skipped:
                log(f"{found.skipped} {what} rows do not fit in {data.max_seq_length} tokens and are left out")
            if found is not None and found.of_frozen_tasks:
                log(f"{found.of_frozen_tasks} {what} rows belong to frozen tasks and are left out")
        if self.order.repeats:
            log(f"{len(self.train_set)} training rows do not fill a global batch; they are repeated")

    def counts(self) -> dict[str, int]:
        """How many rows were used or left out, for the stage's result."""
        return {
            "train_examples": len(self.train_set),
            "train_examples_skipped": self.train_set.skipped,
            "train_examples_truncated": self.train_set.truncated,
            "validation_examples": 0 if self.validation_set is None else len(self.validation_set),
            "validation_examples_skipped": 0 if self.validation_set is None else self.validation_set.skipped,
        }

    def train(self, step: int) -> list[TrainingBatch]:
        """Rows of one task and similar length share a micro-batch: they share a longer prefix. In strict mode that
        changes no result."""
        rows = self.order.global_batch(step)
        if self.semantics == "strict":
            examples = self.train_set.examples
            rows = sorted(rows, key=lambda row: (examples[row].task, len(examples[row].tokens)))
        return [self._batch(self.train_set, chosen) for chosen in self.order.share(rows)]

    def weight(self, step: int) -> float | None:
        """NeMo's mean of means gives a token more weight the shorter its micro-batch's answers are: not in strict mode,
        where neither the micro-batch size nor the split changes what is trained."""
        if self.semantics != "strict":
            return None
        return sum(self.train_set.examples[row].weight for row in self.order.global_batch(step))

    def validation(self) -> Iterator[list[TrainingBatch]]:
        if self.validation_set is None:
            return
        for micro_batches in itertools.islice(self.validation_order.all_rows(), self.val_batches):
            yield [self._batch(self.validation_set, rows) for rows in micro_batches]

    def _batch(self, dataset: PromptDataset, rows: list[int]) -> TrainingBatch:
        """Rows of a micro-batch; a row of -1 is padding."""
        examples = [dataset.examples[row] for row in rows if row >= 0]
        return pack(examples, self.pad_id, self.multiple_of, few_shapes=self.few_shapes).to(self.device)
