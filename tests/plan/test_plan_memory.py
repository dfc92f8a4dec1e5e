"""Parameter counts against the published sizes and against Megatron's formulas."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import (
    BatchSpec,
    CheckpointSpec,
    GenerationSpec,
    ModelSpec,
    OptimSpec,
    PromptData,
    PromptSpec,
    StageSpec,
    TaskTemplate,
    TextData,
    TokenizerSpec,
    TrainerSpec,
)
from hpclm.planning import megatron_memory as memory
from hpclm.planning.memory_estimate import MemoryEstimate

GPT2 = ModelSpec(12, 768, 3072, 12, 12, 64, 1024, 50257, 50304)
GPT20B = ModelSpec(44, 6144, 24576, 48, 48, 128, 2048, 50257, 50304)
LLAMA3_8B = ModelSpec(
    32, 4096, 14336, 32, 8, 128, 8192, 128256, 128256, "rope", 500000.0, "rmsnorm", 1e-5, "swiglu", False, False
)
MIXTRAL = dataclasses.replace(LLAMA3_8B, vocab_size=32000, padded_vocab_size=32000, num_moe_experts=8)
ONE = ParallelSpec(1, 1, 1, 1, 1, 1)
FOUR = dataclasses.replace(ONE, tensor=4)
BATCH = BatchSpec(16, 1, 16)


def estimate(task: str, model: ModelSpec, parallel: ParallelSpec, precision: str, **sections: Any) -> MemoryEstimate:
    """Memory of a stage of so many tokens per sample: those of its `text` or `data`."""
    spec = StageSpec(
        run="",
        stage="stage",
        stage_dir="",
        task=task,
        device="gpu",
        model=model,
        tokenizer=TokenizerSpec("base"),
        parallel=parallel,
        batch=BATCH,
        trainer=TrainerSpec(precision, max_steps=1),  # type: ignore[arg-type]
        optim=OptimSpec(1e-3),
        checkpoint=CheckpointSpec(),
        **sections,
    )
    found = memory.memory(spec)
    assert found is not None
    return found


def test_parameters_are_those_of_the_published_models() -> None:
    # GPT-2: 124,439,808 with its 50,257 rows; Llama 3 8B: 8,030,261,248 (both from their model cards).
    assert memory.total_parameters(GPT2) == 124_439_808 + (50304 - 50257) * 768
    assert memory.total_parameters(LLAMA3_8B) == 8_030_261_248
    # MixtralForCausalLM of transformers, from Mixtral 8x7B's config.json
    assert memory.total_parameters(MIXTRAL) == 46_702_792_704


@pytest.mark.parametrize("model", [GPT2, GPT20B, LLAMA3_8B, MIXTRAL])
def test_one_rank_holds_everything(model: ModelSpec) -> None:
    assert memory.stage_parameters(model, ONE, 0) == memory.total_parameters(model)


def test_a_split_leaves_each_rank_its_part() -> None:
    whole = memory.total_parameters(GPT20B)
    assert memory.stage_parameters(GPT20B, FOUR, 0) == pytest.approx(whole / 4, rel=0.01)
    assert memory.stage_parameters(GPT20B, dataclasses.replace(FOUR, pipeline=4), 0) == pytest.approx(
        whole / 16, rel=0.2
    )


def test_a_frozen_base_costs_two_bytes_a_weight() -> None:
    templates = (TaskTemplate("t", "", 10, [10]),)
    frozen = estimate(
        "p-tuning", GPT20B, FOUR, "bf16",
        data=PromptData(max_seq_length=2048), prompt=PromptSpec(), templates=list(templates),
    )  # fmt: skip
    own = memory.prompt_parameters(GPT20B, True, PromptSpec(), templates, 4)[1]
    assert frozen.weights == 2 * memory.stage_parameters(GPT20B, FOUR, 0) + 4 * own
    assert frozen.gradients == 4 * own
    assert frozen.optimizer == 8 * own
    # tpmlp: two linear layers 6144 × 2048 with their biases, and ten input rows.
    assert frozen.trainable_parameters == 2 * 6144 * 2048 + 2048 + 6144 + 10 * 6144


def test_training_costs_eighteen_bytes_a_weight_in_bf16() -> None:
    trained = estimate("pretrain", GPT2, ONE, "bf16", text=TextData([], seq_length=1024))
    assert trained.weights + trained.gradients + trained.optimizer == 18 * memory.total_parameters(GPT2)
    exact = estimate("pretrain", GPT2, ONE, "fp32", text=TextData([], seq_length=1024))
    assert exact.weights + exact.gradients + exact.optimizer == 16 * memory.total_parameters(GPT2)


def test_activations_follow_korthikanti() -> None:
    # s·b·h·(10 + 24/t) bytes per layer, less 2 of dropout's masks, and the attention's result once more by 2/t; and the
    # logits in fp32 and bf16.
    split = ParallelSpec(4, 1, 1, 4, 1, 4)
    logits = 2048 * 50304 // 4 * 6
    layers = memory.activation_bytes(GPT20B, split, BATCH, 2048, 2) - logits
    assert layers == 2048 * 6144 * (8 + 26 / 4) * 44
    sequence = memory.activation_bytes(GPT20B, dataclasses.replace(split, sequence_parallel=True), BATCH, 2048, 2)
    assert sequence - logits == 2048 * 6144 * 34 * 44 // 4


@pytest.mark.parametrize(("encoder", "layers"), [("mlp", 2), ("mlp", 3), ("lstm", 1), ("lstm", 2)])
def test_encoders_are_counted_as_torch_counts_them(encoder: str, layers: int) -> None:
    torch = pytest.importorskip("torch", reason="torch's own modules are what is counted against")
    h, inner = 48, 20
    if encoder == "mlp":
        widths = [h, *[inner] * (layers - 1), h]
        modules = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    else:
        modules = [
            torch.nn.LSTM(h, inner, layers, bidirectional=True),
            torch.nn.Linear(2 * inner, 2 * inner),
            torch.nn.Linear(2 * inner, h),
        ]
    expected = sum(weight.numel() for module in modules for weight in module.parameters()) + 10 * h
    model = dataclasses.replace(GPT2, hidden_size=h)
    prompt = PromptSpec(encoder=encoder, encoder_hidden=inner, encoder_layers=layers)  # type: ignore[arg-type]
    templates = (TaskTemplate("t", "", 10, [10]),)
    assert memory.prompt_parameters(model, True, prompt, templates, 1) == (expected, expected)


def test_answering_keeps_keys_and_values_of_every_layer() -> None:
    short, long = (
        estimate(
            "evaluate", GPT20B, FOUR, "bf16",
            data=PromptData(max_seq_length=length), generation=GenerationSpec(batch_size=16),
        )
        for length in (1024, 2048)
    )  # fmt: skip
    cache = 2 * 44 * 16 * 1024 * (48 // 4) * 128 * 2
    states = 16 * 1024 * (4 * 6144 + 2 * 24576 // 4) * 2
    assert long.activations - short.activations == cache + states
    assert (long.gradients, long.optimizer) == (0, 0)
    assert long.weights == 2 * memory.stage_parameters(GPT20B, FOUR, 0)
