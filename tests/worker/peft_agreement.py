# ruff: noqa: E402 - the stand-ins must be in place before anything of the engine is imported
"""`python -m tests.worker.peft_agreement`: our prompt learning and Hugging Face PEFT's on the same weights and rows.

Prints their differences. A process of its own, because the engine's CPU stand-ins are for the life of a process.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any, Literal

warnings.simplefilter("ignore")

import torch
import torch.distributed as dist

from bench import prompt_learning as bench
from hpclm.core import spec as plan
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.engines.megatron.ranks import cpu_standins

cpu_standins.install()

from peft import PromptEncoder, PromptEncoderConfig, get_peft_model
from transformers import GPT2LMHeadModel

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.building import build_prompts
from hpclm.engines.megatron.ranks import groups as process_groups
from hpclm.engines.megatron.ranks.gpt_model import initialize_weights, transformer_config

HIDDEN, INNER = 64, 48
SIZES = argparse.Namespace(
    layers=2, hidden=HIDDEN, heads=4, vocab=512, tokens=22, batch=4, device="cpu", precision="fp32"
)
# a large epsilon keeps Adam from turning rounding of tiny gradients into whole steps
OPTIM = plan.OptimSpec(lr=1e-2, weight_decay=0.0, epsilon=1e-3, schedule="constant")


def main() -> None:
    parallel = ParallelSpec(1, 1, 1, 1, 1, 1)
    groups = process_groups.initialize(dist.HashStore(), 0, parallel, torch.device("cpu"), 1)
    model = plan.ModelSpec(
        SIZES.layers, HIDDEN, 4 * HIDDEN, 4, 4, HIDDEN // 4, SIZES.tokens + bench.VIRTUAL, SIZES.vocab, SIZES.vocab
    )
    config = transformer_config(model, parallel, "fp32", groups.device, variable_lengths=True)
    kinds: tuple[Literal["mlp", "lstm"], ...] = ("mlp", "lstm")
    found = {kind: encoder_difference(kind, config, groups) for kind in kinds}
    print(json.dumps({**found, **step_difference(model, parallel, groups)}))


def encoder_difference(kind: Literal["mlp", "lstm"], config: Any, groups: Any) -> float:
    """The largest difference of the virtual tokens."""
    spec = argparse.Namespace(
        templates=[plan.TaskTemplate("task", "", bench.VIRTUAL, [bench.VIRTUAL])],
        prompt=plan.PromptSpec(kind, INNER, 3 if kind == "mlp" else 2),
    )
    ours = build_prompts(PromptsCard("p-tuning", spec.prompt, spec.templates), config, 7, groups.device)
    theirs = PromptEncoder(  # type: ignore[no-untyped-call]
        PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=bench.VIRTUAL,
            token_dim=HIDDEN,
            num_transformer_submodules=1,
            encoder_hidden_size=INNER,
            encoder_reparameterization_type=kind.upper(),
            encoder_num_layers=2,
            encoder_dropout=0.0,
        )
    )
    state = ours.state_dict()
    theirs.embedding.weight.data.copy_(state["inputs.task_task"])
    if kind == "mlp":
        theirs.mlp_head.load_state_dict(ours.encoder.state_dict())
    else:
        theirs.lstm_head.load_state_dict(ours.encoder.lstm.state_dict())
        theirs.mlp_head.load_state_dict(ours.encoder.head.state_dict())
    return float((ours()[0] - theirs(torch.arange(bench.VIRTUAL).unsqueeze(0))[0]).abs().max())


def step_difference(model: plan.ModelSpec, parallel: ParallelSpec, groups: Any) -> dict[str, float]:
    """Loss, gradients and updated weights of one training step on the same frozen model."""
    trainer, gpt, prompts = bench._trainer(model, parallel, groups, SIZES, OPTIM)
    initialize_weights(gpt, model, 1)
    base = GPT2LMHeadModel(bench.gpt2_config(SIZES))
    base.load_state_dict(bench._as_gpt2(gpt.state_dict(), SIZES), strict=False)
    settings = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=bench.VIRTUAL, encoder_hidden_size=HIDDEN)
    theirs = get_peft_model(base, settings)
    encoder = theirs.prompt_encoder["default"]
    bench._copy_prompts(encoder, prompts.state_dict())
    adam = torch.optim.AdamW(encoder.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.0)
    rows = bench._rows(SIZES)
    logits = theirs(input_ids=rows[:, :-1]).logits[:, bench.VIRTUAL :]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    adam.step()
    outcome = trainer.step(0)
    pairs = zip(_in_order(encoder), prompts.parameters(), strict=True)
    return {
        "loss": abs(outcome.loss - loss.item()),
        "grad_norm": abs(outcome.grad_norm - norm.item()) / norm.item(),
        "weights": max(float((a - b).abs().max()) for a, b in pairs),
        "moved": float((prompts.inputs["task_task"] - input_table_at_first(prompts)).abs().max()),
    }


def input_table_at_first(prompts: Any) -> torch.Tensor:
    """What the input table was before the step: drawing it again gives the same."""
    now = prompts.inputs["task_task"].detach().clone()
    prompts.initialize(1)
    start: torch.Tensor = prompts.inputs["task_task"].detach().clone()
    prompts.inputs["task_task"].data.copy_(now)
    return start


def _in_order(encoder: Any) -> list[torch.Tensor]:
    return [encoder.embedding.weight, *encoder.mlp_head.parameters()]


if __name__ == "__main__":
    main()
