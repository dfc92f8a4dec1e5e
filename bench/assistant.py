"""P-tuning on the assistant set: hpclm against Hugging Face PEFT, on one frozen model and the same rows.

    hpclm data prepare assistant SOURCE assistant-data      # once
    hpclm submit recipes/assistant.yaml --nodes 2 --wait    # once: the base model
    python bench/assistant.py runs/assistant-…

Both start from the same prompt encoder (PEFT's mlp; its prompt can only stand in front) and take the same rows in the
same order at the same learning rates, each as its users have it: hpclm as its ranks run, PEFT with padded batches,
labels of -100 outside the answer and a fused AdamW. Printed: steps per second and peak memory as medians and ratios
over rounds of fresh processes, the first losses (which must agree), and the quality both reach.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from typing import Any

SIDES = ("hpclm", "peft")
WARM_UP = 5
TEMPLATE = "<|VIRTUAL_PROMPT_0|> Predict intent and slot :\n{utterance}{label}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of recipes/assistant.yaml")
    for name, default in (("steps", 300), ("answers", 200), ("rounds", 3), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--shared", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps({"hpclm": _hpclm, "peft": _peft}[arguments.side](arguments)))
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for side in SIDES:
                argv = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--shared", folder]
                # quality does not change from round to round
                argv += [] if number == 0 else ["--answers", "0"]
                done = subprocess.run(argv, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr[-4000:])
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
    ours, theirs = (found[side][0] for side in SIDES)
    if abs(ours["first_loss"] - theirs["first_loss"]) > 1e-3:
        sys.exit(f"first losses differ: {ours['first_loss']}, {theirs['first_loss']}: not the same work")
    if arguments.answers and abs(ours["exact_match"] - theirs["exact_match"]) > 0.02:
        sys.exit(f"exact matches differ: {ours['exact_match']}, {theirs['exact_match']}: not the same answers")
    for key in ("first_loss", "val_loss", "exact_match", "intent_accuracy", "slot_f1"):
        print(f"{key}: hpclm {ours[key]:.4f}, PEFT {theirs[key]:.4f}")
    for key, title in (("steps_per_s", "steps per second"), ("peak_mib", "peak memory, MiB")):
        mine, other = (statistics.median(one[key] for one in found[side]) for side in SIDES)
        ratios = [a[key] / b[key] for a, b in zip(found["hpclm"], found["peft"], strict=True)]
        print(f"{title}: hpclm {mine:.2f}, PEFT {other:.2f}, ratio {statistics.median(ratios):.2f}")


def _timed(step: Any, steps: int) -> dict[str, float]:
    """`step(number)` gives its loss; the first few are not timed."""
    first = step(0)
    for number in range(1, WARM_UP):
        step(number)
    began = time.perf_counter()
    for number in range(WARM_UP, steps):
        step(number)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"first_loss": first, "steps_per_s": (steps - WARM_UP) / seconds, "peak_mib": peak}


def _scores(pairs: list[tuple[str, str]]) -> dict[str, float]:
    from hpclm.metrics import scores

    rows = [{"taskname": "task", "prediction": prediction, "answer": answer} for prediction, answer in pairs]
    keys = ("exact_match", "intent_accuracy", "slot_f1")
    return {key: scores(rows)["task"][key] for key in keys} if rows else dict.fromkeys(keys, 0.0)


def _hpclm(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    from hpclm.core.parallel_spec import ParallelSpec
    from hpclm.engines.megatron.ranks import cpu_standins

    torch.set_num_threads(arguments.threads)
    cpu_standins.install()
    from hpclm.core.layout import StagePaths
    from hpclm.data.tokenizers import load_tokenizer
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.rank_context import StageContext
    from hpclm.engines.megatron.ranks.stage_models import base_checkpoint, config_for, load_base
    from hpclm.engines.megatron.ranks.tasks.prompt_learning import PromptBatches
    from hpclm.engines.megatron.ranks.tasks.starting_prompts import starting_prompts
    from hpclm.engines.megatron.ranks.training import TrainingSteps
    from hpclm.worker.report import Progress
    from hpclm.worker.signals import StopFlag

    spec = _spec(arguments)
    groups = process_groups.initialize(dist.HashStore(), 0, ParallelSpec(1, 1, 1, 1, 1, 1), torch.device("cpu"), 1)
    progress = Progress(Path("unused"), Path("unused"), active=False)
    context = StageContext(spec, StagePaths(arguments.shared), groups, progress, StopFlag())
    tokenizer = load_tokenizer(spec.tokenizer, base_checkpoint(spec))
    config = config_for(context, variable_lengths=True, frozen=True)
    gpt = load_base(context, config)
    card, prompts = starting_prompts(context, config, gpt, tokenizer)
    batches = PromptBatches(context, tokenizer, spec.data, card)
    model = LanguageModel(config, gpt, prompts, frozen=True)
    trainer = TrainingSteps(spec, groups, [model], batches, StopFlag())
    _share(arguments, spec, batches, gpt, prompts)
    result = _timed(lambda step: trainer.step(step).loss, arguments.steps)
    if arguments.answers:
        val_loss = trainer.validate(arguments.steps).loss
        assert val_loss is not None
        result["val_loss"] = val_loss
        result |= _scores(_hpclm_answers(arguments, spec, groups, model, tokenizer))
    return result


def _spec(arguments: argparse.Namespace) -> Any:
    """The run's p-tuning stage on one rank, with PEFT's encoder and a prompt at the start."""
    from hpclm.core import spec as plan
    from hpclm.core.parallel_spec import ParallelSpec
    from hpclm.core.records import from_dict

    stages = arguments.run.resolve() / "stages"
    raw = json.loads((stages / "ptune" / "spec.json").read_text())
    spec = from_dict(plan.StageSpec, {**raw, "spec_version": plan.SPEC_VERSION})
    template = dataclasses.replace(spec.templates[0], prompt_template=TEMPLATE, virtual_token_splits=[10])
    size = spec.batch.global_batch_size
    return dataclasses.replace(
        spec,
        stage_dir=str(arguments.shared),
        base=str(stages / "pretrain" / "checkpoints"),
        parallel=ParallelSpec(1, 1, 1, 1, 1, 1),
        batch=plan.BatchSpec(size, size, 1),
        trainer=plan.TrainerSpec("fp32", max_steps=arguments.steps),
        templates=[template],
        prompt=plan.PromptSpec("mlp", spec.model.hidden_size, 3),
        generation=plan.GenerationSpec(max_new_tokens=64, batch_size=32),
    )


def _share(arguments: argparse.Namespace, spec: Any, batches: Any, gpt: Any, prompts: Any) -> None:
    """What the other side needs: weights, rows as tokens, and the order they are taken in."""
    import torch

    from hpclm.core.learning_rate import learning_rate

    def rows(dataset: Any) -> list[list[Any]]:
        """Tokens without the virtual ones, and where the answer starts."""
        found = []
        for example in dataset.examples:
            virtual = sum(number >= 0 for number in example.virtual)
            found.append([example.tokens[virtual:], example.loss_mask.index(1.0) - virtual])
        return found

    torch.save({"gpt": gpt.state_dict(), "prompts": prompts.state_dict()}, arguments.shared / "weights.pt")
    facts = {
        "model": dataclasses.asdict(spec.model),
        "train": rows(batches.train_set),
        "validation": rows(batches.validation_set),
        "order": [batches.order.global_batch(step) for step in range(arguments.steps)],
        "rates": [learning_rate(spec.optim, step, arguments.steps) for step in range(arguments.steps)],
        "clip": spec.trainer.gradient_clip_norm,
        "decay": spec.optim.weight_decay,
        "pad": batches.pad_id,
    }
    (arguments.shared / "facts.json").write_text(json.dumps(facts))


def _hpclm_answers(arguments: Any, spec: Any, groups: Any, model: Any, tokenizer: Any) -> list[tuple[str, str]]:
    from hpclm.data.examples import rows_to_answer
    from hpclm.data.ranks.packing import collate_prompts
    from hpclm.engines.megatron.ranks.generation import Generator

    dataset = rows_to_answer(dataclasses.replace(spec, prompts="these"), spec.templates, tokenizer)
    generator = Generator(model, groups, spec.generation, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    chosen = dataset.examples[: arguments.answers]
    tests = [[example.tokens[10:], example.answer] for example in chosen]
    (arguments.shared / "tests.json").write_text(json.dumps({"rows": tests, "eos": tokenizer.eos_id}))
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(chosen), 32):
        part = chosen[start : start + 32]
        made = generator(collate_prompts(part, tokenizer.pad_id), [example.index for example in part])
        for ids, example in zip(made, part, strict=True):
            assert example.answer is not None
            pairs.append((tokenizer.decode(ids), example.answer))
    tokenizer.save(arguments.shared)
    return pairs


def _peft(arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(arguments.threads)
    facts = json.loads((arguments.shared / "facts.json").read_text())
    model = _peft_model(arguments, facts)
    encoder = model.prompt_encoder["default"]
    grouped = [
        {"params": [p for p in encoder.parameters() if p.dim() > 1], "weight_decay": facts["decay"]},
        {"params": [p for p in encoder.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(grouped, lr=1e-3, betas=(0.9, 0.98), fused=True)

    def step(number: int) -> float:
        for group in adam.param_groups:
            group["lr"] = facts["rates"][number]
        adam.zero_grad()
        loss = model(**_padded([facts["train"][row] for row in facts["order"][number]], facts["pad"])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), facts["clip"])
        adam.step()
        return float(loss.item())

    model.train()
    result = _timed(step, arguments.steps)
    if arguments.answers:
        model.eval()
        result["val_loss"] = _peft_validation(model, facts)
        result |= _scores(_peft_answers(arguments, model))
    return result


def _padded(rows: list[list[Any]], pad: int) -> dict[str, Any]:
    import torch

    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), -100)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for place, (tokens, answer) in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        labels[place, answer : len(tokens)] = torch.tensor(tokens[answer:])
        mask[place, : len(tokens)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def _peft_validation(model: Any, facts: dict[str, Any]) -> float:
    import torch

    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(facts["validation"]), 16):
            batch = _padded(facts["validation"][start : start + 16], facts["pad"])
            weight = float((batch["labels"] >= 0).sum())
            total += model(**batch).loss.item() * weight
            count += weight
    return total / count


def _peft_answers(arguments: argparse.Namespace, model: Any) -> list[tuple[str, str]]:
    import torch

    from hpclm.data.tokenizers import Tokenizer

    tests = json.loads((arguments.shared / "tests.json").read_text())
    tokenizer = Tokenizer.load(arguments.shared)
    by_length: dict[int, list[list[Any]]] = {}
    for row in tests["rows"]:
        by_length.setdefault(len(row[0]), []).append(row)
    pairs = []
    for rows in by_length.values():
        ids = torch.tensor([tokens for tokens, _ in rows])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=tests["eos"],
            pad_token_id=tests["eos"],
            # PEFT 0.21 drops the position ids of cached steps (with transformers 5.24), and the answers are nonsense
            use_cache=False,
        )
        # some releases of transformers give the prompt back in front of the answer, others the answer alone
        begins = ids.shape[1] if made[:, : ids.shape[1]].equal(ids) else 0
        pairs += [(tokenizer.decode(answer[begins:].tolist()), row[1]) for answer, row in zip(made, rows, strict=True)]
    return pairs


def _peft_model(arguments: argparse.Namespace, facts: dict[str, Any]) -> Any:
    """The base as transformers' GPT-NeoX (rotary positions, layer norm, biases, tied output) with PEFT's p-tuning."""
    import torch
    from peft import PromptEncoder, PromptEncoderConfig, get_peft_model
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    weights = torch.load(arguments.shared / "weights.pt", weights_only=True)
    spec = facts["model"]
    config = GPTNeoXConfig(
        vocab_size=spec["padded_vocab_size"],
        hidden_size=spec["hidden_size"],
        num_hidden_layers=spec["num_layers"],
        num_attention_heads=spec["num_attention_heads"],
        intermediate_size=spec["ffn_hidden_size"],
        hidden_act="gelu_pytorch_tanh",
        max_position_embeddings=spec["max_position_embeddings"],
        layer_norm_eps=spec["layernorm_epsilon"],
        tie_word_embeddings=True,
        use_parallel_residual=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": spec["rotary_base"],
            "partial_rotary_factor": 1.0,
        },
    )
    base = GPTNeoXForCausalLM(config)
    missing = base.load_state_dict(_as_neox(weights["gpt"], spec["num_layers"]), strict=False).missing_keys
    assert not [key for key in missing if "rotary" not in key], missing
    prompt = PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=10, encoder_hidden_size=spec["hidden_size"])
    model = get_peft_model(base, prompt)
    encoder = model.prompt_encoder["default"]
    assert isinstance(encoder, PromptEncoder)
    (inputs,) = (tensor for name, tensor in weights["prompts"].items() if name.startswith("inputs."))
    encoder.embedding.weight.data.copy_(inputs)
    names = {name.removeprefix("encoder."): t for name, t in weights["prompts"].items() if name.startswith("encoder.")}
    encoder.mlp_head.load_state_dict(names)
    return model


def _as_neox(state: dict[str, Any], layers: int) -> dict[str, Any]:
    """megatron-core's names as GPT-NeoX's; the layout of q, k and v within a head's rows is the same."""
    words = state["embedding.word_embeddings.weight"]
    result = {
        "gpt_neox.embed_in.weight": words,
        "lm_head.weight": words,
        "gpt_neox.final_layer_norm.weight": state["decoder.final_layernorm.weight"],
        "gpt_neox.final_layer_norm.bias": state["decoder.final_layernorm.bias"],
    }
    parts = {
        "input_layernorm": "input_layernorm",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "self_attention.linear_qkv": "attention.query_key_value",
        "self_attention.linear_proj": "attention.dense",
        "mlp.linear_fc1": "mlp.dense_h_to_4h",
        "mlp.linear_fc2": "mlp.dense_4h_to_h",
    }
    for layer in range(layers):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                tensor = state[f"decoder.layers.{layer}.{ours}.{kind}"]
                result[f"gpt_neox.layers.{layer}.{theirs}.{kind}"] = tensor
    return result


if __name__ == "__main__":
    main()
