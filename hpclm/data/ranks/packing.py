"""Training rows as one packed sequence: no padding, and the prefix that all rows share only once.

Rows of a prompt-learning batch share a prefix (virtual tokens, the template's first words) and differ in length; in a
padded batch, a third to a half of the work is spent on padding and on repeating the prefix. Here a micro-batch is one
sequence: the shared prefix, then each row's rest. Attention unpacks it (`engines.megatron.ranks.attention`); every
other layer works token by token. The results are those of the padded batch, except for the order of summation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from hpclm.data.ranks.batches import GenerationBatch, TrainingBatch
from hpclm.data.ranks.packed_layout import Layout
from hpclm.data.templates import Example

# a shorter prefix is as true, and each length is another shape
_PREFIX_STEP = 8


def pack(examples: list[Example], pad_id: int, multiple_of: int = 1, *, few_shapes: bool = False) -> TrainingBatch:
    """A training batch [1, s]: at each position the next token of its row is the label.

    Args:
        examples: an empty list gives a batch with a zero loss mask (a replica without a row of the last batch).
        multiple_of: s is rounded up to it (sequence parallelism).
        few_shapes: round sizes, s by an eighth at most, so that micro-batches have few different ones (CUDA graphs).

    Returns:
        All of it [1, s]; `loss_positions` are one at least.
    """
    shared = _shared_prefix(examples)
    if few_shapes:
        shared -= shared % _PREFIX_STEP
    # the shared prefix is stored with the first row
    starts_in_row = [0] + [shared] * (len(examples) - 1)
    counts = [len(example.tokens) - 1 for example in examples]
    spans = [slice(start, count) for start, count in zip(starts_in_row, counts, strict=False)]
    labels = [slice(span.start + 1, span.stop + 1) for span in spans]
    sizes = [span.stop - span.start for span in spans]
    real = sum(sizes)
    # rounded positions of the loss need one that does not count
    length = -(-max(1, _rounded(real + 1) if few_shapes else real) // multiple_of) * multiple_of

    def row(parts: Iterable[Iterable[float]], fill: float, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor([[*itertools.chain.from_iterable(parts), *[fill] * (length - real)]], dtype=dtype)

    pairs = list(zip(examples, spans, labels, strict=True))
    loss_mask = row((example.loss_mask[label] for example, _, label in pairs), 0.0, torch.float32)
    loss_positions = loss_mask.flatten().nonzero().squeeze(1)
    if few_shapes:
        missing = _rounded(len(loss_positions)) - len(loss_positions)
        loss_positions = torch.cat([loss_positions, torch.full((missing,), length - 1)])
    return TrainingBatch(
        tokens=row((example.tokens[span] for example, span, _ in pairs), pad_id),
        labels=row((example.labels[label] for example, _, label in pairs), pad_id),
        position_ids=row((range(span.start, span.stop) for span in spans), 0),
        virtual_index=row((example.virtual[span] for example, span, _ in pairs), -1),
        task=row(([example.task] * size for (example, _, _), size in zip(pairs, sizes, strict=True)), 0),
        loss_mask=loss_mask,
        loss_positions=loss_positions if len(loss_positions) else torch.zeros(1, dtype=torch.int64),
        real_tokens=sum(counts),
        layout=Layout.make(shared, [count - shared for count in counts], length, few_widths=few_shapes),
    )


def _rounded(count: int) -> int:
    """Up to a multiple of a sixteenth to an eighth of it, of 64 at least."""
    step = max(64, 1 << max(0, count.bit_length() - 4))
    return -(-max(1, count) // step) * step


def _shared_prefix(examples: list[Example]) -> int:
    """Length of the prefix that all rows share, where no loss is computed, since the next tokens differ."""
    if len(examples) < 2 or len({example.task for example in examples}) > 1:
        return 0
    first = examples[0]
    count = min(len(example.tokens) - 1 for example in examples)
    for example in examples:
        for position in range(count):
            if (
                example.tokens[position] != first.tokens[position]
                or example.virtual[position] != first.virtual[position]
                or example.loss_mask[position + 1]
            ):
                count = position
                break
    return count


def collate_prompts(examples: list[Example], pad_id: int) -> GenerationBatch:
    """Prompts to continue [b, s], padded behind, with `task` [b]."""
    length = max(len(example.tokens) for example in examples)

    def rows(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in values], dtype=torch.int64)

    return GenerationBatch(
        tokens=rows([example.tokens for example in examples], pad_id),
        virtual_index=rows([example.virtual for example in examples], -1),
        position_ids=torch.arange(length).repeat(len(examples), 1),
        task=torch.tensor([example.task for example in examples]),
        lengths=tuple(len(example.tokens) for example in examples),
    )
