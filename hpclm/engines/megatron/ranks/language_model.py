"""The module that is trained: a GPT, and in prompt learning the soft prompts that go into its first stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hpclm.adapters.ranks.soft_prompts import SoftPrompts
from hpclm.engines.megatron.ranks.sparse_loss import losses_at

Batch = dict[str, Tensor]


class LanguageModel(MegatronModule):
    """A GPT shard and, on the first pipeline stage of prompt learning, the soft prompts.

    A batch holds int64 `tokens`, `labels`, `position_ids` [b, s] and fp32 `loss_mask` [b, s]; with soft prompts also
    int64 `virtual_index` [b, s] (the number of the virtual token at a slot, -1 elsewhere) and `task`, [b] or [b, s].
    With int64 `places` [n] losses are made at these of the b · s positions alone. With `layout` the one row is a packed
    sequence (see `data.packing`).
    """

    def __init__(self, config: TransformerConfig, gpt: GPTModel, prompts: SoftPrompts | None, *, frozen: bool) -> None:
        super().__init__(config=config)
        self.gpt = gpt
        self.prompts = prompts
        self.frozen = frozen
        self.model_type = gpt.model_type
        self.pre_process, self.post_process = gpt.pre_process, gpt.post_process
        # read by megatron-core, which sums the gradients of tied embeddings over first and last stage
        self.share_embeddings_and_output_weights = gpt.share_embeddings_and_output_weights and not frozen
        if frozen:
            gpt.requires_grad_(False)

    def set_input_tensor(self, input_tensor: Any) -> None:
        self.gpt.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        return self.gpt.shared_embedding_or_output_weight()

    def forward(self, batch: Batch) -> Tensor:
        """Per-token losses fp32 [b, s] on the last stage, activations [s, b, h] (or their share) on the others."""
        decoder_input = None
        if self.pre_process and "virtual_index" in batch:
            table = self.prompts() if self.prompts is not None else None
            decoder_input = embed(self.gpt, batch, table)
        with positions_of_rows(self.gpt, batch):
            return self._losses(batch, decoder_input)

    def _losses(self, batch: Batch, decoder_input: Tensor | None) -> Tensor:
        if self.post_process and "places" in batch:
            states = self._states(batch, decoder_input)
            return losses_at(self.gpt, states, batch["labels"], batch["places"])
        return self.gpt(
            batch["tokens"],
            batch["position_ids"],
            batch.get("layout"),
            decoder_input=decoder_input,
            labels=batch["labels"] if self.post_process else None,
        )

    def _states(self, batch: Batch, decoder_input: Tensor | None) -> Tensor:
        """What goes into the output layer."""
        self.gpt.post_process = False
        try:
            return self.gpt(batch["tokens"], batch["position_ids"], batch.get("layout"), decoder_input=decoder_input)
        finally:
            self.gpt.post_process = True


@contextlib.contextmanager
def positions_of_rows(gpt: GPTModel, batch: Batch) -> Iterator[None]:
    """Rotary embeddings of a packed sequence by each token's place in its row; megatron-core counts in the sequence."""
    if "layout" not in batch or gpt.position_embedding_type != "rope":
        yield
        return
    places = batch["position_ids"][0]
    hook = gpt.rotary_pos_emb.register_forward_hook(lambda _module, _inputs, table: table.index_select(0, places))
    try:
        yield
    finally:
        hook.remove()


def embed(gpt: GPTModel, batch: Batch, table: Tensor | None) -> Tensor:
    """Token embeddings with virtual tokens put in their slots, positions added to both.

    Args:
        table: soft prompts [tasks, virtual tokens, h], or None for the model alone.

    Returns:
        [s, b, h], or this rank's [s/tp, b, h] under sequence parallelism.
    """
    embedding = gpt.embedding
    words = embedding.word_embeddings(batch["tokens"])
    if table is not None:
        index = batch["virtual_index"]
        task = batch["task"]
        rows = table[task.unsqueeze(1) if task.dim() == 1 else task, index.clamp(min=0)]
        words = torch.where((index >= 0).unsqueeze(-1), rows.to(words.dtype), words)
    if embedding.add_position_embedding:
        words = words + embedding.position_embeddings(batch["position_ids"])
    states = words.transpose(0, 1).contiguous()
    if gpt.config.sequence_parallel:
        states = tensor_parallel.scatter_to_sequence_parallel_region(states)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return embedding.embedding_dropout(states)
    return embedding.embedding_dropout(states)
