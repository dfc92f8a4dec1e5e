"""The module that is trained: a GPT, and in prompt learning the soft prompts that go into its first stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from hpclm.adapters.ranks.soft_prompts import SoftPrompts
from hpclm.data.ranks.batches import Batch, TrainingBatch
from hpclm.engines.megatron.ranks.sparse_loss import sparse_losses


class LanguageModel(MegatronModule):
    """A GPT shard and, on the first pipeline stage of prompt learning, the soft prompts.

    Of a batch with `loss_positions` losses are computed only at these positions; one
    with a `layout` is a packed sequence.
    """

    def __init__(self, config: TransformerConfig, gpt: GPTModel, prompts: SoftPrompts | None, *, frozen: bool) -> None:
        super().__init__(config=config)
        self.gpt = gpt
        self.prompts = prompts
        self.frozen = frozen
        self.model_type = gpt.model_type
        self.vp_stage = gpt.vp_stage
        self.pre_process, self.post_process = gpt.pre_process, gpt.post_process
        # read by megatron-core, which sums the gradients of tied embeddings over first and last stage
        self.share_embeddings_and_output_weights = gpt.share_embeddings_and_output_weights and not frozen
        if frozen:
            gpt.requires_grad_(False)

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor | None] | None) -> None:
        self.gpt.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> Tensor:
        weight: Tensor = self.gpt.shared_embedding_or_output_weight()
        return weight

    def forward(self, batch: TrainingBatch, table: Tensor | None = None) -> Tensor:
        """Per-token losses fp32 [b, s] on the last stage, activations [s, b, h] (or their share) on the others.

        Args:
            table: the soft prompts, where the caller has made them.
        """
        decoder_input = None
        if self.pre_process and batch.virtual_index is not None:
            if table is None and self.prompts is not None:
                table = self.prompts()
            decoder_input = embed(self.gpt, batch, table)
        with positions_of_rows(self.gpt, batch):
            return self._losses(batch, decoder_input)

    def _losses(self, batch: TrainingBatch, decoder_input: Tensor | None) -> Tensor:
        if self.post_process and batch.loss_positions is not None:
            states = self._states(batch, decoder_input)
            return sparse_losses(self.gpt, states, batch.labels, batch.loss_positions)
        output: Tensor = self.gpt(
            batch.tokens,
            batch.position_ids,
            batch.layout,
            decoder_input=decoder_input,
            labels=batch.labels if self.post_process else None,
        )
        return output

    def _states(self, batch: TrainingBatch, decoder_input: Tensor | None) -> Tensor:
        """The input of the output layer."""
        with without_output_layer(self.gpt):
            states: Tensor = self.gpt(batch.tokens, batch.position_ids, batch.layout, decoder_input=decoder_input)
        return states


@contextlib.contextmanager
def without_output_layer(gpt: GPTModel) -> Iterator[None]:
    """Let the model's last stage give the input of its output layer."""
    had = gpt.post_process
    gpt.post_process = False
    try:
        yield
    finally:
        gpt.post_process = had


def positions_of_rows(gpt: GPTModel, batch: TrainingBatch) -> contextlib.AbstractContextManager[None]:
    """Rotary embeddings of a packed sequence by each token's position in its row, not by that in the sequence."""
    return contextlib.nullcontext() if batch.layout is None else rotated_by_position(gpt, batch.position_ids)


@contextlib.contextmanager
def rotated_by_position(gpt: GPTModel, positions: Tensor) -> Iterator[None]:
    """Rotary embeddings by these positions, int64 [b, s], and not by the places in the sequence."""
    if gpt.position_embedding_type != "rope":
        yield
        return
    rows, length = positions.shape
    flat = positions.t().reshape(-1)

    def chosen(_module: object, _inputs: object, table: Tensor) -> Tensor:
        return table.index_select(0, flat).view(length, rows, 1, -1)

    hook = gpt.rotary_pos_emb.register_forward_hook(chosen)
    try:
        yield
    finally:
        hook.remove()


def embed(gpt: GPTModel, batch: Batch, table: Tensor | None) -> Tensor:
    """Token embeddings with virtual tokens in their slots, position embeddings added to both.

    Args:
        table: soft prompts [tasks, virtual tokens, h], or None for the model alone.

    Returns:
        [s, b, h], or this rank's [s/tp, b, h] under sequence parallelism.
    """
    embedding = gpt.embedding
    words = embedding.word_embeddings(batch.tokens)
    if table is not None:
        index, task = batch.virtual_index, batch.task
        assert index is not None
        assert task is not None
        is_virtual = index >= 0
        rows = _virtual_rows(table, task.unsqueeze(1) if task.dim() == 1 else task, index, is_virtual)
        words = torch.where(is_virtual.unsqueeze(-1), rows.to(words.dtype), words)
    if embedding.add_position_embedding:
        words = words + embedding.position_embeddings(batch.position_ids)
    states = words.transpose(0, 1).contiguous()
    if gpt.config.sequence_parallel:
        states = tensor_parallel.scatter_to_sequence_parallel_region(states)
    # under sequence parallelism each tensor rank has different positions and must draw different masks
    fork = tensor_parallel.get_cuda_rng_tracker().fork() if gpt.config.sequence_parallel else contextlib.nullcontext()
    with fork:
        dropped: Tensor = embedding.embedding_dropout(states)
    return dropped


def _virtual_rows(table: Tensor, task: Tensor, index: Tensor, is_virtual: Tensor) -> Tensor:
    """Rows [b, s, h] of the soft prompts; where no virtual token is, one that takes no part in the gradient, whose sum
    over all words would else be made one by one."""
    tasks, count, _ = table.shape
    nothing = tasks * count
    places = torch.where(is_virtual, task * count + index, nothing)
    padded = functional.pad(table.flatten(0, 1), (0, 0, 0, 1))
    return functional.embedding(places, padded, padding_idx=nothing)
