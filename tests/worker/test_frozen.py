"""A frozen base costs no gradient memory and no work for weight gradients; recomputation is really done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.building import build_prompts
from hpclm.core import spec as plan
from hpclm.core.parallel_spec import ParallelSpec, RecomputeSpec
from hpclm.data.ranks.batches import TrainingBatch
from hpclm.data.ranks.packing import pack
from hpclm.data.templates import Example
from hpclm.engines.megatron.ranks import cuda_graph
from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.training import TrainingSteps
from hpclm.worker.signals import StopFlag
from tests.support import graph_standin
from tests.support.engine_harness import SMALL

# megatron-core warns of its own defaults
pytestmark = pytest.mark.filterwarnings("ignore")

PARALLEL = ParallelSpec(1, 1, 1, 1, 1, 1)
TEMPLATE = plan.TaskTemplate("task", "", 4, [4])
LENGTH, ROWS = 25, 8
MODEL = replace(SMALL, tie_embeddings=False)


class OneBatch:
    """The same rows at every step: four virtual tokens, text, and an answer of `answer` tokens."""

    steps_per_epoch = 1

    def __init__(self, answer: int, *, few_shapes: bool = False, length: int = LENGTH) -> None:
        tokens = [list(range(10 + row, 10 + row + length)) for row in range(ROWS)]
        mask = [0.0] * (length - answer) + [1.0] * answer
        virtual = [0, 1, 2, 3] + [-1] * (length - 4)
        examples = [Example(row, virtual, mask, "task", 0, place, "", None) for place, row in enumerate(tokens)]
        self.batch = pack(examples, 0, few_shapes=few_shapes)

    def train(self, step: int) -> list[TrainingBatch]:
        return [self.batch]

    def weight(self, step: int) -> None:
        return None


def trainer(groups: Groups, *, frozen: bool, answer: int = LENGTH - 4, recompute: Any = None) -> TrainingSteps:
    spec = plan.StageSpec(
        run="test",
        stage="test",
        stage_dir="",
        task="prompt-tuning",
        device="cpu",
        model=MODEL,
        tokenizer=plan.TokenizerSpec("base"),
        parallel=PARALLEL,
        batch=plan.BatchSpec(ROWS, ROWS, 1),
        trainer=plan.TrainerSpec("fp32", max_steps=10, recompute=recompute),
        optim=plan.OptimSpec(1e-3),
        checkpoint=plan.CheckpointSpec(),
    )
    config = transformer_config(MODEL, PARALLEL, "fp32", groups.device, variable_lengths=True, recompute=recompute)
    gpt = build_gpt(MODEL, config, groups)
    initialize_weights(gpt, MODEL, 1)
    prompts = build_prompts(PromptsCard("prompt-tuning", None, [TEMPLATE]), config, 1, groups.device)
    model = LanguageModel(config, gpt, prompts, frozen=frozen)
    return TrainingSteps(spec, groups, [model], OneBatch(answer), StopFlag())  # type: ignore[arg-type]


def flops(one: TrainingSteps) -> int:
    """Multiplications and additions of matrix products in a step, by megatron-core's schedule: torch's counter knows
    nothing of autograd.grad."""
    one.passes = None
    one.step(0)
    with FlopCounterMode(display=False) as counter:
        one.step(1)
    total: int = counter.get_total_flops()
    return total


def test_a_frozen_base_has_no_gradients_and_no_optimizer_state(alone: Groups) -> None:
    frozen, full = trainer(alone, frozen=True), trainer(alone, frozen=False)
    for one in (frozen, full):
        one.step(0)
    prompts = sum(p.numel() for p in frozen.module.prompts.parameters())  # type: ignore[union-attr]
    weights = sum(p.numel() for p in full.module.gpt.parameters())

    def gradients(one: TrainingSteps) -> int:
        return sum(buffer.grad_data.numel() for buffer in one.models[0].buffers)

    # buffers are padded to a multiple of 64 or 128 values
    assert prompts <= gradients(frozen) <= prompts + 128
    assert gradients(full) >= prompts + weights
    assert all(p.grad is None and not hasattr(p, "main_grad") for p in frozen.module.gpt.parameters())
    assert frozen.optimizer.adam is not None
    state = sum(v.numel() for one in frozen.optimizer.adam.state.values() for v in one.values() if v.dim())
    assert state == 2 * prompts


def test_a_frozen_base_costs_two_thirds_of_a_full_steps_products(alone: Groups) -> None:
    """Forward and the gradients of activations; the gradients of weights, a third, are not made."""
    share = flops(trainer(alone, frozen=True)) / flops(trainer(alone, frozen=False))
    assert share == pytest.approx(2 / 3, abs=0.03)


def test_the_output_layer_works_at_loss_positions_alone(alone: Groups) -> None:
    all_of_it, some = (flops(trainer(alone, frozen=True, answer=count)) for count in (LENGTH - 4, 3))
    # each position costs a product with the output table, forward and backward
    spared = (LENGTH - 4 - 3) * ROWS * 2 * 2 * MODEL.hidden_size * MODEL.padded_vocab_size
    assert all_of_it - some == spared


@pytest.mark.parametrize("share", [None, 20.0])
def test_passes_outside_of_the_schedule_train_the_same(alone: Groups, share: float | None) -> None:
    """With sizes rounded to few shapes, as CUDA graphs take them."""
    plain, rounded = trainer(alone, frozen=True), trainer(alone, frozen=True)
    batches = OneBatch(LENGTH - 4, few_shapes=True)
    assert batches.batch.tokens.numel() % 64 == 0
    assert batches.batch.loss_positions is not None
    assert len(batches.batch.loss_positions) % 64 == 0
    for one, weight in ((plain, share), (rounded, share)):
        one.batches.weight = lambda step, weight=weight: weight  # type: ignore[method-assign,misc]
    rounded.batches.train = lambda step: [batches.batch]  # type: ignore[method-assign]
    plain.passes = None
    assert rounded.passes is not None
    expected, found = ([one.step(step) for step in range(4)] for one in (plain, rounded))
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=1e-5)
    assert [step.grad_norm for step in found] == pytest.approx([step.grad_norm for step in expected], rel=1e-4)
    assert expected[-1].loss < expected[0].loss


def test_graphs_train_as_passes_kernel_by_kernel_do(alone: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of two lengths in turn, and thus two graphs."""
    plain, graphed = trainer(alone, frozen=True), trainer(alone, frozen=True)
    short, long = (OneBatch(10, few_shapes=True, length=length).batch for length in (LENGTH - 8, LENGTH))
    other = replace(short, labels=short.labels.roll(1, 1))
    for one in (plain, graphed):
        one.batches.train = lambda step: [[short, long], [other, long], [long, other]][step % 3]  # type: ignore[method-assign]
    passes = graphed.passes
    assert passes is not None

    def captured(work: Any, pool: Any) -> Any:
        assert passes.gradient is not None
        before = passes.gradient.clone()
        made = graph_standin.captured(work, pool)
        passes.gradient.copy_(before)
        return made

    monkeypatch.setattr(cuda_graph, "captured", captured)
    monkeypatch.setattr(type(passes), "_pays", lambda self, key: self.seen.get(key, 0) >= 1)
    monkeypatch.setattr(type(passes), "_timed", lambda self, key, batch, shares: self._work(batch, shares=shares))
    passes.captures = True
    expected, found = ([one.step(step) for step in range(7)] for one in (plain, graphed))
    assert [step.loss for step in found] == [step.loss for step in expected]
    assert [step.grad_norm for step in found] == [step.grad_norm for step in expected]
    assert len(passes.graphs) == 2
    assert all(one.graph.replays > 2 for one in passes.graphs.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("frozen", [True, False])
def test_recomputation_runs_the_layers_again(alone: Groups, frozen: bool) -> None:
    calls: list[int] = []

    def counted(recompute: RecomputeSpec | None) -> int:
        one = trainer(alone, frozen=frozen, recompute=recompute)
        for layer in one.module.gpt.decoder.layers:
            layer.self_attention.core_attention.register_forward_hook(lambda *_: calls.append(1))
        calls.clear()
        one.step(0)
        return len(calls)

    assert counted(None) == MODEL.num_layers
    assert counted(RecomputeSpec("selective")) == 2 * MODEL.num_layers
    assert counted(RecomputeSpec("full", "uniform", 1)) == 2 * MODEL.num_layers
    assert counted(RecomputeSpec("full", "block", 1)) == MODEL.num_layers + 1
