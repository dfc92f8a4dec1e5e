"""Micro-batches of rows that lie one behind the other in a single sequence: nothing is padded."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.logging import log
from hpclm.data.ranks.prepared_rows import PreparedRows
from hpclm.data.ranks.row_packing import first_fit
from hpclm.data.ranks.sampler import GlobalBatchSampler
from hpclm.engines.hf.ranks.document_attention import Documents

# What a virtual token's place holds; its embedding is replaced.
_PLACEHOLDER = 0


@dataclass(frozen=True)
class DocumentBatch:
    """Rows of s tokens in all.

    Attributes:
        tokens, positions: int64 [1, s].
        documents: the rows' bounds.
        label_places: int64 [n], the positions whose next token is a label; labels: int64 [n].
        virtual_places: int64 [rows · v], the positions of virtual tokens; None without them.
        real_tokens: tokens of rows; 0 for a batch that only keeps this rank in step with the others.
    """

    tokens: Tensor
    positions: Tensor
    documents: Documents
    label_places: Tensor
    labels: Tensor
    virtual_places: Tensor | None
    real_tokens: int

    def to(self, device: torch.device) -> DocumentBatch:
        moved = {name: one.to(device) for name, one in vars(self).items() if isinstance(one, Tensor)}
        made: dict[str, Any] = {**vars(self), **moved, "documents": self.documents.to(device)}
        return DocumentBatch(**made)

    def single_rows(self) -> Iterator[DocumentBatch]:
        """Each row alone, for models that cannot keep rows apart."""
        bounds = self.documents.starts
        for start, end in itertools.pairwise(bounds):
            own = (self.label_places >= start) & (self.label_places < end)
            virtual = self.virtual_places
            if virtual is not None:
                virtual = virtual[(virtual >= start) & (virtual < end)] - start
            yield replace(
                self,
                tokens=self.tokens[:, start:end],
                positions=self.positions[:, start:end],
                documents=replace(self.documents, starts=(0, end - start), segments=None).to(self.tokens.device),
                label_places=self.label_places[own] - start,
                labels=self.labels[own],
                virtual_places=virtual,
                real_tokens=self.real_tokens if start == 0 else 0,
            )


def document_batch(rows: Sequence[tuple[np.ndarray, np.ndarray]], virtual: int = 0) -> DocumentBatch:
    """A batch of rows (tokens, and which are labels), each behind `virtual` virtual tokens."""
    empty = not rows
    if empty:
        # a token without a label, so that this rank takes part in the forward and backward pass of all
        rows = [(np.full(2, _PLACEHOLDER, dtype=np.int32), np.zeros(2, dtype=np.bool_))]
    starts = [0, *itertools.accumulate(virtual + len(tokens) for tokens, _ in rows)]
    before = np.full(virtual, _PLACEHOLDER, dtype=np.int32)
    tokens = np.concatenate([part for one, _ in rows for part in (before, one)])
    positions = np.concatenate([np.arange(virtual + len(one)) for one, _ in rows])
    places, labels = [], []
    for start, (one, learned) in zip(starts, rows, strict=False):
        # the first token is a label only where a virtual one precedes it
        first = 0 if virtual else 1
        wanted = np.flatnonzero(learned[first:]) + first
        places.append(start + virtual + wanted - 1)
        labels.append(one[wanted])
    virtual_places = None
    if virtual:
        virtual_places = torch.from_numpy(np.concatenate([start + np.arange(virtual) for start in starts[:-1]]))
    return DocumentBatch(
        tokens=torch.from_numpy(tokens.astype(np.int64))[None],
        positions=torch.from_numpy(positions.astype(np.int64))[None],
        documents=Documents(tuple(starts)),
        label_places=torch.from_numpy(np.concatenate(places).astype(np.int64)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        virtual_places=virtual_places,
        real_tokens=0 if empty else sum(len(one) for one, _ in rows),
    )


class InstructionBatches:
    """The rows of a stage by step, as this rank takes them."""

    def __init__(
        self, spec: FineTuneStageSpec, train: PreparedRows, validation: PreparedRows | None, rank: int, world_size: int
    ) -> None:
        self.train_rows, self.validation_rows = train, validation
        self.virtual = spec.method.virtual_tokens.count if spec.method.method in ("p-tuning", "prompt-tuning") else 0
        self.val_batches = spec.trainer.val_batches
        self.samples = _samples(train, spec)
        sampler = functools.partial(
            GlobalBatchSampler,
            global_batch_size=spec.batch.global_batch_size,
            micro_batch_size=spec.batch.micro_batch_size,
            data_rank=rank,
            data_size=world_size,
        )
        self.order = sampler(len(self.samples), seed=spec.trainer.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        if validation is not None:
            self.validation_samples = _samples(validation, spec)
            self.validation_order = sampler(len(self.validation_samples), seed=None)
        if rank == 0 and self.order.repeats:
            log(f"{len(self.samples)} training samples do not fill a global batch; they are repeated")

    def train(self, step: int) -> list[DocumentBatch]:
        """The micro-batches of global step `step` (from 0, over all epochs). Rows of similar length share one."""
        rows = sorted(self.order.global_batch(step), key=self._length)
        return [self._batch(self.train_rows, self.samples, some) for some in self.order.share(rows)]

    def weight(self, step: int) -> int:
        """Labels in the global batch of `step`."""
        rows = self.order.global_batch(step)
        return sum(self._labels(row) for sample in rows for row in self.samples[sample])

    def _labels(self, row: int) -> int:
        labels = int(self.train_rows.labels[row])
        if not self.virtual:
            return labels
        _, learned = self.train_rows.row(row)
        return labels + bool(learned[0])  # a virtual token precedes it

    def _length(self, sample: int) -> int:
        return sum(int(self.train_rows.lengths[row]) for row in self.samples[sample])

    def validation(self) -> Iterator[list[DocumentBatch]]:
        """The validation set in groups of micro-batches, as many groups and micro-batches on every rank."""
        if self.validation_rows is None:
            return
        for some in itertools.islice(self.validation_order.all_rows(), self.val_batches):
            yield [self._batch(self.validation_rows, self.validation_samples, rows) for rows in some]

    def _batch(self, rows: PreparedRows, samples: list[list[int]], chosen: list[int]) -> DocumentBatch:
        """Samples of a micro-batch; one of -1 is padding."""
        return document_batch([rows.row(row) for one in chosen if one >= 0 for row in samples[one]], self.virtual)


def _samples(rows: PreparedRows, spec: FineTuneStageSpec) -> list[list[int]]:
    if not spec.data.packing:
        return [[row] for row in range(len(rows))]
    return first_fit(rows.lengths.tolist(), spec.data.max_seq_length)
