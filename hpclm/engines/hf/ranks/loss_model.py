"""A causal language model that gives the loss of packed rows: logits are computed where there are labels alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpclm.core.logging import log
from hpclm.engines.hf.ranks import document_attention
from hpclm.engines.hf.ranks.document_batches import DocumentBatch, document_batch

# Labels whose logits are held at a time.
_CHUNK = 8192
_TOLERANCE = 1e-3


class LossModel(nn.Module):
    """Sum of the cross entropy (nats) over the labels of a batch.

    Attributes:
        model: of transformers, with or without PEFT's adapters.
        keeps_rows_apart: whether rows of one sequence do not see each other; otherwise each is computed alone.
    """

    def __init__(self, model: nn.Module, base: Any, virtual_tokens: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.virtual_tokens = model, virtual_tokens
        self.keeps_rows_apart = True
        self.base = [base]  # not a part of this module
        self.own_attention = base.config._attn_implementation == document_attention.NAME
        self.takes_places = "logits_to_keep" in inspect.signature(type(base).forward).parameters
        self._virtual: tuple[Tensor, Tensor] | None = None
        if virtual_tokens is not None:
            base.get_input_embeddings().register_forward_hook(self._insert)

    @property
    def attention(self) -> str:
        """The implementation that is used."""
        found: str = self.base[0].config._attn_implementation
        return found

    def forward(self, batch: DocumentBatch) -> Tensor:
        if self.keeps_rows_apart:
            return self._loss(batch)
        rows = list(batch.single_rows())
        # where weights are divided, every rank takes part in every pass
        virtual = 0 if self.virtual_tokens is None else self.virtual_tokens().size(0)
        nothing = document_batch([], virtual).to(batch.tokens.device)
        rows += [nothing] * (_most(len(rows), batch.tokens.device) - len(rows))
        return torch.stack([self._loss(one) for one in rows]).sum()

    def _loss(self, batch: DocumentBatch) -> Tensor:
        logits = self.logits(batch, batch.label_places).float()
        if not len(batch.labels):
            return logits.sum() * 0.0
        return nn.functional.cross_entropy(logits, batch.labels, reduction="sum")

    def logits(self, batch: DocumentBatch, places: Tensor) -> Tensor:
        """[n, vocabulary] at these positions, at least one. With an attention of transformers from the first time on
        where the model's is more than `documents`."""
        places = places if len(places) else places.new_zeros(1)
        if batch.virtual_places is not None:
            assert self.virtual_tokens is not None
            table = self.virtual_tokens()
            count = len(batch.virtual_places) // table.size(0)
            self._virtual = batch.virtual_places, table.repeat(count, 1)
        try:
            found = self._computed(batch, places)
        except document_attention.UnsupportedAttentionError as error:
            log(f"{error}, which attention: documents does not compute; transformers' {error.instead} does")
            self.base[0].set_attn_implementation(error.instead)
            self.own_attention = False
            found = self._computed(batch, places)
        self._virtual = None
        return found[0] if self.takes_places else found[0].index_select(0, places)

    def _computed(self, batch: DocumentBatch, places: Tensor) -> Tensor:
        given: dict[str, Any] = {"documents": batch.documents} if self.own_attention else {}
        if self.takes_places:
            given["logits_to_keep"] = places
        made: Tensor = self.model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, **given).logits
        return made

    def _insert(self, module: nn.Module, inputs: Any, words: Tensor) -> Tensor:
        """Virtual tokens in their places, [1, s, h]."""
        if self._virtual is None:
            return words
        places, values = self._virtual
        return words.index_copy(1, places, values.to(words.dtype)[None])

    @torch.no_grad()
    def check_rows_apart(self, vocabulary: int, device: torch.device) -> bool:
        """Compute two rows in one sequence and each alone, and remember whether that is the same. Collective where the
        model's weights are divided."""
        import numpy as np

        virtual = 0 if self.virtual_tokens is None else self.virtual_tokens().size(0)
        draw = np.random.default_rng(0)
        some, labels = min(vocabulary, 1000), np.ones(6, dtype=np.bool_)
        rows = [(draw.integers(0, some, 6, dtype=np.int32), labels) for _ in range(2)]
        training = self.training
        self.eval()
        both = document_batch(rows, virtual).to(device)
        together = self.logits(both, both.label_places).float()
        alone = torch.cat([self.logits(one, one.label_places).float() for one in both.single_rows()])
        self.train(training)
        scale = alone.abs().max().clamp(min=1e-6)
        tolerance = _TOLERANCE if together.dtype == torch.float32 else 5e-2
        differ = bool(((together - alone).abs().max() <= tolerance * scale).logical_not())  # true of no numbers, too
        # one answer for all ranks
        self.keeps_rows_apart = _most(int(differ), device) == 0
        return self.keeps_rows_apart


def _most(number: int, device: torch.device) -> int:
    """The largest of all ranks' numbers."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)
