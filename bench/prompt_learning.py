"""P-tuning steps per second and peak memory: hpclm's engine against Hugging Face PEFT, on the same weights and rows.

    python bench/prompt_learning.py                 # alternates both, prints medians and the ratio
    python bench/prompt_learning.py --layers 12 --hidden 768 --heads 12 --device cuda --precision bf16

Each measurement is a process of its own with the same threads; the first loss of both is printed, and they must agree,
so that equal work is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpclm.data.ranks.batches import TrainingBatch
if TYPE_CHECKING or __package__:
    from bench.forked import forked, load
else:
    # as a script, whose own folder is on the path
    from forked import forked, load

VIRTUAL = 10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 6), ("hidden", 256), ("heads", 8), ("vocab", 8192), ("tokens", 118)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batch", 16), ("steps", 30), ("rounds", 3), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_place(parser)
    parser.add_argument("--side", choices=("hpclm", "peft"), help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps(_SIDES[arguments.side](arguments)))
    else:
        if arguments.device == "cuda":
            load()
        _compare(arguments)


def add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the model, on both sides")


def _compare(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        found: dict[str, list[dict[str, Any]]] = {"hpclm": [], "peft": []}
        for _ in range(arguments.rounds):
            for side, results in found.items():
                results.append(measured(_SIDES, side, arguments, weights, __file__))
    losses = {side: results[0]["loss"] for side, results in found.items()}
    if abs(losses["hpclm"] - losses["peft"]) > (1e-4 if arguments.precision == "fp32" else 2e-2):
        sys.exit(f"first losses differ: {losses}: not the same work")
    print(f"first loss: hpclm {losses['hpclm']:.6f}, PEFT {losses['peft']:.6f}")
    rows = (("steps_per_s", "steps per second"), ("peak_mib", "peak memory, MiB"), ("growth_mib", "of it for training"))
    for key, title in rows:
        ours, theirs = (statistics.median(item[key] for item in found[side]) for side in ("hpclm", "peft"))
        ratios = [a[key] / b[key] for a, b in zip(found["hpclm"], found["peft"], strict=True)]
        print(f"{title}: hpclm {ours:.2f}, PEFT {theirs:.2f}, ratio {statistics.median(ratios):.2f}")


def measured(sides: Any, side: str, arguments: argparse.Namespace, weights: Path, script: str) -> dict[str, Any]:
    """What a side's function returns in a process of its own."""
    if arguments.device == "cuda":
        mine = argparse.Namespace(**{**vars(arguments), "side": side, "weights": weights})
        return dict(forked(lambda: sides[side](mine)))
    argv = [sys.executable, script, *sys.argv[1:], "--side", side, "--weights", str(weights)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _rows(arguments: argparse.Namespace) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, arguments.vocab, (arguments.batch, arguments.tokens + 1), generator=generator)
    return rows.to(arguments.device)


def _timed(step: Any, arguments: argparse.Namespace) -> dict[str, float]:
    before = _peak_mib(arguments.device)
    first = step()
    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    seconds = time.perf_counter() - began
    peak = _peak_mib(arguments.device)
    return {"loss": first, "steps_per_s": arguments.steps / seconds, "peak_mib": peak, "growth_mib": peak - before}


def _peak_mib(device: str) -> float:
    """The most so far: of the process, or on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / (1 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _world(arguments: argparse.Namespace, **changes: Any) -> tuple[Any, Any, Any]:
    """A world of this process alone: its split, its groups, and the model of the arguments' sizes."""
    import torch
    import torch.distributed as dist

    from hpclm.core.parallel_spec import ParallelSpec
    from hpclm.engines.megatron.ranks import cpu_standins

    torch.set_num_threads(arguments.threads)
    if arguments.device == "cpu":
        cpu_standins.install()
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.worker.ranks.devices import set_arithmetic

    set_arithmetic(arguments.precision, deterministic=False)
    parallel = ParallelSpec(1, 1, 1, 1, 1, 1)
    place = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    groups = process_groups.initialize(dist.HashStore(), 0, parallel, place, 1)
    return parallel, groups, model_spec(arguments, arguments.tokens + VIRTUAL, **changes)


def model_spec(arguments: argparse.Namespace, positions: int, **changes: Any) -> Any:
    """The model of the arguments' sizes."""
    from hpclm.core import spec as plan

    return plan.ModelSpec(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden,
        ffn_hidden_size=4 * arguments.hidden,
        num_attention_heads=arguments.heads,
        num_query_groups=arguments.heads,
        kv_channels=arguments.hidden // arguments.heads,
        max_position_embeddings=positions,
        vocab_size=arguments.vocab,
        padded_vocab_size=arguments.vocab,
        **changes,
    )


def _hpclm(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    parallel, groups, model = _world(arguments)
    from hpclm.core import spec as plan
    from hpclm.engines.megatron.ranks.gpt_model import initialize_weights

    trainer, gpt, prompts = _trainer(model, parallel, groups, arguments, plan.OptimSpec(1e-3))
    initialize_weights(gpt, model, 1)
    if not arguments.weights.exists():
        torch.save({"gpt": gpt.state_dict(), "prompts": prompts.state_dict()}, arguments.weights)
    count = iter(range(10**9))
    return _timed(lambda: trainer.step(next(count)).loss, arguments)


def _trainer(
    model: Any, parallel: Any, groups: Any, arguments: argparse.Namespace, optim: Any, *, frozen: bool = True
) -> tuple[Any, Any, Any]:
    from hpclm.adapters.prompts_card import PromptsCard
    from hpclm.adapters.ranks.building import build_prompts
    from hpclm.core import spec as plan
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, transformer_config
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.training import TrainingSteps
    from hpclm.worker.signals import StopFlag

    spec = plan.StageSpec(
        run="bench",
        stage="bench",
        stage_dir="",
        task="p-tuning",
        device="gpu" if arguments.device == "cuda" else "cpu",
        model=model,
        tokenizer=plan.TokenizerSpec("base"),
        parallel=parallel,
        batch=plan.BatchSpec(arguments.batch, arguments.batch, 1),
        trainer=plan.TrainerSpec(arguments.precision, max_steps=10**6),
        optim=optim,
        checkpoint=plan.CheckpointSpec(),
        templates=[plan.TaskTemplate("task", "", VIRTUAL, [VIRTUAL])],
        prompt=plan.PromptSpec("mlp", arguments.hidden, 3),
    )
    config = transformer_config(model, parallel, arguments.precision, groups.device, variable_lengths=True)
    gpt = build_gpt(model, config, groups)
    prompts = build_prompts(PromptsCard("p-tuning", spec.prompt, spec.templates), config, 1, groups.device)
    language_model = LanguageModel(config, gpt, prompts, frozen=frozen)
    trainer = TrainingSteps(spec, groups, [language_model], _Batches(arguments), StopFlag())
    return trainer, gpt, prompts


class _Batches:
    """The same batch at every step: virtual tokens, then the rows."""

    steps_per_epoch = 1

    def __init__(self, arguments: argparse.Namespace) -> None:
        from hpclm.data.ranks.packing import pack
        from hpclm.data.templates import Example

        rows = _rows(arguments).tolist()
        virtual = [*range(VIRTUAL)] + [-1] * len(rows[0])
        # PEFT's first real token has no prediction: its labels start with the second
        mask = [0.0] * (VIRTUAL + 1) + [1.0] * (len(rows[0]) - 1)
        examples = [Example([0] * VIRTUAL + row, virtual, mask, "task", 0, n, "", None) for n, row in enumerate(rows)]
        self.batch = pack(examples, 0, few_shapes=arguments.device == "cuda")
        self.device = arguments.device

    def train(self, step: int) -> list[TrainingBatch]:
        import torch

        return [self.batch.to(torch.device(self.device))]

    def weight(self, step: int) -> None:
        """One micro-batch: its mean is the step's."""

    def validation(self) -> Iterator[list[TrainingBatch]]:
        return iter(())


def _peft(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    from peft import PromptEncoderConfig, get_peft_model
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(arguments.threads)
    weights = torch.load(arguments.weights, weights_only=True, map_location="cpu")
    base: Any = GPT2LMHeadModel(gpt2_config(arguments))
    base.load_state_dict(_as_gpt2(weights["gpt"], arguments), strict=False)
    base.to(torch.bfloat16 if arguments.precision == "bf16" else torch.float32)
    prompt = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, encoder_hidden_size=arguments.hidden
    )
    model = get_peft_model(base, prompt)
    _copy_prompts(model.prompt_encoder["default"], weights["prompts"])
    model.to(arguments.device)
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=1e-3, betas=(0.9, 0.98), fused=True
    )
    rows = _rows(arguments)[:, :-1]
    labels = _rows(arguments)[:, 1:]

    def step() -> float:
        optimizer.zero_grad()
        states = model(input_ids=rows).logits[:, VIRTUAL:].float()
        loss = torch.nn.functional.cross_entropy(states.flatten(0, 1), labels.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.prompt_encoder.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return _timed(step, arguments)


def gpt2_config(arguments: argparse.Namespace) -> Any:
    """transformers' configuration of the same architecture."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=arguments.vocab,
        n_positions=arguments.tokens + VIRTUAL,
        n_embd=arguments.hidden,
        n_layer=arguments.layers,
        n_head=arguments.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _as_gpt2(state: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """megatron-core's names and shapes as transformers' GPT-2: q, k and v apart, linear weights transposed."""
    heads, hidden = arguments.heads, arguments.hidden

    def qkv(tensor: Any) -> Any:
        rest = tensor.shape[1:]
        return tensor.view(heads, 3, hidden // heads, *rest).transpose(0, 1).reshape(3 * hidden, *rest)

    result = {
        "transformer.wte.weight": state["embedding.word_embeddings.weight"],
        "lm_head.weight": state["embedding.word_embeddings.weight"],
        "transformer.wpe.weight": state["embedding.position_embeddings.weight"],
        "transformer.ln_f.weight": state["decoder.final_layernorm.weight"],
        "transformer.ln_f.bias": state["decoder.final_layernorm.bias"],
    }
    parts = {
        "input_layernorm": "ln_1",
        "pre_mlp_layernorm": "ln_2",
        "self_attention.linear_qkv": "attn.c_attn",
        "self_attention.linear_proj": "attn.c_proj",
        "mlp.linear_fc1": "mlp.c_fc",
        "mlp.linear_fc2": "mlp.c_proj",
    }
    for layer in range(arguments.layers):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                tensor = state[f"decoder.layers.{layer}.{ours}.{kind}"]
                tensor = qkv(tensor) if "qkv" in ours else tensor
                result[f"transformer.h.{layer}.{theirs}.{kind}"] = tensor.t() if tensor.dim() > 1 else tensor
    return result


def _copy_prompts(encoder: Any, state: dict[str, Any]) -> None:
    encoder.embedding.weight.data.copy_(state["inputs.task_task"])
    encoder.mlp_head.load_state_dict(
        {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}
    )


_SIDES = {"hpclm": _hpclm, "peft": _peft}

if __name__ == "__main__":
    main()
