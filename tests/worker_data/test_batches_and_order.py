"""Examples as batches, and which rows a rank takes when."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm.core.errors import DataError
from hpclm.core.spec import PromptData, TaskTemplate
from hpclm.data.examples import PromptDataset
from hpclm.data.ranks.packing import collate_prompts, pack
from hpclm.data.ranks.sampler import FILL, GlobalBatchSampler
from hpclm.data.templates import Example
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.attention import SdpaAttention

TOKENIZER = Tokenizer.train(["a b c d e f"] * 5, 300)
SHORT = Example([9, 1, 2, 3], [0, -1, -1, -1], [0, 0, 1, 1], "t", 0, 0, "", None)
LONG = Example([9, 4, 5, 6, 7, 8], [0, -1, -1, -1, -1, -1], [0, 0, 0, 0, 1, 1], "u", 1, 1, "", None)


def test_a_training_batch_predicts_the_next_token_of_each_row() -> None:
    batch = pack([SHORT, LONG], 0)
    assert batch.tokens.tolist() == [[9, 1, 2, 9, 4, 5, 6, 7]]
    assert batch.labels.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch.loss_mask.tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]
    assert batch.loss_positions is not None
    assert batch.loss_positions.tolist() == [1, 2, 6, 7]
    assert batch.virtual_index is not None
    assert batch.virtual_index.tolist() == [[0, -1, -1, 0, -1, -1, -1, -1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.task is not None
    assert batch.task.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert batch.real_tokens == 8


def test_a_shared_prefix_stands_once() -> None:
    batch = pack([replace(SHORT, task=1), LONG], 0, multiple_of=4)
    # the virtual token; then two and four of their own, and one to make it eight
    assert batch.tokens.tolist() == [[9, 1, 2, 4, 5, 6, 7, 0]]
    assert batch.labels.tolist() == [[1, 2, 3, 5, 6, 7, 8, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 1, 2, 3, 4, 0]]
    assert batch.loss_mask.tolist() == [[0, 1, 1, 0, 0, 1, 1, 0]]


def test_no_loss_position_is_in_the_shared_prefix() -> None:
    """What follows it differs from row to row."""
    trained = [replace(one, task=0, loss_mask=[0.0] + [1.0] * (len(one.tokens) - 1)) for one in (SHORT, LONG)]
    assert pack(trained, 0).tokens.tolist() == [[9, 1, 2, 9, 4, 5, 6, 7]]


def test_no_rows_are_a_batch_in_which_nothing_counts() -> None:
    batch = pack([], 0, multiple_of=2)
    assert batch.tokens.shape == (1, 2)
    assert batch.loss_mask.sum() == 0
    assert batch.loss_positions is not None
    assert len(batch.loss_positions) == 1


def test_micro_batches_of_many_sizes_have_few_shapes() -> None:
    draw = random.Random(5)
    shapes = set()
    for _ in range(400):
        count = draw.choice([8, 8, 8, 5])
        rows = [[7] * 12 + [draw.randrange(20, 90) for _ in range(draw.randrange(20, 60))] for _ in range(count)]
        examples = [
            Example(row, [-1] * len(row), [0.0] * (len(row) - 6) + [1.0] * 6, "t", 0, 0, "", None) for row in rows
        ]
        batch, exact = pack(examples, 0, few_shapes=True), pack(examples, 0)
        assert batch.layout is not None
        assert batch.loss_positions is not None
        assert exact.loss_positions is not None
        counted = batch.loss_mask.flatten()[batch.loss_positions]
        assert counted.sum() == exact.loss_mask.sum() == len(exact.loss_positions)
        assert exact.tokens.numel() < batch.tokens.numel() <= max(64, 1.3 * exact.tokens.numel() + 64)
        shapes.add((batch.tokens.shape, batch.layout.shape, batch.loss_positions.shape))
    assert len(shapes) <= 20


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_packed_sequence_attends_as_its_rows_do_alone(
    rows: list[tuple[int, int, bool]], multiple: int, few: bool
) -> None:
    """Outputs and gradients of attention over the packed rows, against each row by itself."""
    examples = []
    for own, answer, odd in rows:
        tokens = [7, 7, 8 if odd else 7, *range(10, 10 + own), *[5] * answer]
        mask = [0.0] * (len(tokens) - answer) + [1.0] * answer
        examples.append(Example(tokens, [0, 1] + [-1] * (len(tokens) - 2), mask, "t", 0, 0, "", None))
    batch = pack(examples, 0, multiple, few_shapes=few)
    length = batch.tokens.shape[1]
    generator = torch.Generator().manual_seed(length)
    table = torch.randn(30, 3, 2, 4, generator=generator, dtype=torch.float64)
    # the same token at the same place has the same query, key and value, whichever row it is in
    places = torch.randn(40, 1, 1, 1, generator=generator, dtype=torch.float64)

    def attend(states: torch.Tensor, layout: torch.Tensor | None) -> torch.Tensor:
        module = object.__new__(SdpaAttention)
        torch.nn.Module.__init__(module)
        module.config = SimpleNamespace(attention_dropout=0.0, sequence_parallel=False, context_parallel_size=1)
        module.grouped, module.softmax_scale, module.hidden_size_per_partition = False, None, 8
        query, key, value = states.unbind(1)
        output: torch.Tensor = module(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), layout)
        return output[:, 0]

    packed_table, alone_table = (table.clone().requires_grad_() for _ in range(2))
    packed_ids, positions = batch.tokens[0], batch.position_ids[0]
    packed = attend(packed_table[packed_ids] + places[positions], batch.layout)
    at_loss = packed[batch.loss_positions][batch.loss_mask.flatten()[batch.loss_positions].bool()]
    alone = []
    for example in examples:
        ids = torch.tensor(example.tokens[:-1])
        made = attend(alone_table[ids] + places[: len(ids)], None)
        alone.append(made[torch.tensor(example.loss_mask[1:]).bool()])
    expected = torch.cat(alone)
    assert torch.allclose(at_loss, expected)
    at_loss.square().sum().backward()  # type: ignore[no-untyped-call]
    expected.square().sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(packed_table.grad, alone_table.grad)  # type: ignore[arg-type]


def test_prompts_are_padded_behind() -> None:
    batch = collate_prompts([SHORT, LONG], 0)
    assert batch.tokens[0].tolist() == [9, 1, 2, 3, 0, 0]
    assert batch.lengths == (4, 6)
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.virtual_index[0].tolist() == [0, -1, -1, -1, -1, -1]
    assert batch.tokens.dtype == torch.int64


def rows(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps({"taskname": "t", "x": "a b c", "answer": "d"}) + "\n" for _ in range(count)))
    return str(path)


def test_no_test_row_is_dropped_and_a_line_separator_in_a_string_is_no_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"taskname": "t", "x": "a\u2028b " * 60, "answer": "d"}, ensure_ascii=False) + "\n\n")
    template = TaskTemplate("t", "<|VIRTUAL_PROMPT_0|> {x} {answer}", 2, [2])
    data = PromptData(max_seq_length=12)
    files = [str(file), rows(tmp_path / "more.jsonl", 2)]
    dataset = PromptDataset(files, [template], TOKENIZER, data, training=False)
    assert [example.index for example in dataset.examples] == [0, 1, 2]
    assert dataset.truncated == 1
    assert len(dataset.examples[0].tokens) == 12
    trained = PromptDataset(files, [template], TOKENIZER, data, training=True)
    assert (len(trained), trained.skipped) == (2, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"taskname": "t"\n', r":1: is not valid JSON"),
        (b"\xff\n", "not UTF-8 text at byte 0"),
        (b"\n", "no usable row is left"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        PromptDataset([str(file)], [TaskTemplate("t", "{x}", 0, [])], TOKENIZER, PromptData(), training=True)


def sampler(rows: int, rank: int = 0, size: int = 1, seed: int | None = 5) -> GlobalBatchSampler:
    return GlobalBatchSampler(rows, global_batch_size=8, micro_batch_size=2, data_rank=rank, data_size=size, seed=seed)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_do_not_depend_on_the_number_of_replicas(size: int) -> None:
    for step in (0, 1, 5):
        whole = sampler(30).step(step)
        shares = [sampler(30, rank, size).step(step) for rank in range(size)]
        assert [micro for group in zip(*shares, strict=True) for micro in group] == whole


def test_an_epoch_takes_each_row_once_and_each_epoch_another_order() -> None:
    order = sampler(30)
    epochs = [[row for step in range(3 * e, 3 * e + 3) for micro in order.step(step) for row in micro] for e in (0, 1)]
    assert order.steps_per_epoch == 3
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert epochs[0] != epochs[1]
    # computed from the step alone: any order of asking gives the same
    assert sampler(30).step(4) == order.step(4)


def test_fewer_rows_than_a_batch_repeat() -> None:
    taken = [row for micro in sampler(3).step(0) for row in micro]
    assert len(taken) == 8
    assert set(taken) == {0, 1, 2}


@pytest.mark.parametrize("size", [1, 2])
def test_validation_takes_each_row_once_and_fills_up(size: int) -> None:
    shares = [list(sampler(11, rank, size, seed=None).all_rows()) for rank in range(size)]
    taken = [row for share in shares for group in share for micro in group for row in micro]
    assert sorted(row for row in taken if row != FILL) == list(range(11))
    assert len(taken) == 16
    assert len({len(share) for share in shares}) == 1
