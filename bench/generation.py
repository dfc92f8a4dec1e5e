"""Tokens per second of greedy generation: hpclm against Hugging Face `generate`, on the same weights and prompts.

    python bench/generation.py                 # alternates both, prints medians and the ratio
    python bench/generation.py --layers 12 --hidden 768 --heads 12 --batch 4

Each measurement is a process of its own with the same threads; both must give the same tokens, and neither ends a row
early.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from bench import prompt_learning as shared
    from bench.forked import load
else:
    # as a script, whose own folder is on the path
    import prompt_learning as shared
    from forked import load

SIDES = ("hpclm", "hf")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 6), ("hidden", 256), ("heads", 8), ("vocab", 8192), ("prompt", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("batch", 16), ("new", 64), ("rounds", 5), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    shared.add_place(parser)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    # the positions of the mapping's model
    arguments.tokens = arguments.prompt + arguments.new
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps(_SIDES[arguments.side](arguments)))
    else:
        if arguments.device == "cuda":
            load()
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for side in SIDES:
                weights = Path(folder) / "weights.pt"
                found[side].append(shared.measured(_SIDES, side, arguments, weights, __file__))
    ours, theirs = (found[side][0]["answers"] for side in SIDES)
    if ours != theirs and arguments.precision == "fp32":  # in bf16 two tokens may be equally likely
        sys.exit(f"{sum(a != b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} rows differ")
    mine, other = (statistics.median(one["tokens_per_s"] for one in found[side]) for side in SIDES)
    ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(found["hpclm"], found["hf"], strict=True)]
    print(f"tokens per second: hpclm {mine:.0f}, Hugging Face {other:.0f}, ratio {statistics.median(ratios):.2f}")


def _rows(arguments: argparse.Namespace) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, arguments.vocab, (arguments.batch, arguments.prompt), generator=generator).to(
        arguments.device
    )


def _timed(answer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    answers = answer()
    began = time.perf_counter()
    for _ in range(2):
        answer()
    seconds = (time.perf_counter() - began) / 2
    assert all(len(row) == arguments.new for row in answers)
    return {"answers": answers, "tokens_per_s": arguments.batch * arguments.new / seconds}


def _hpclm(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    parallel, groups, model = shared._world(arguments, init_std=0.2)
    from hpclm.core import spec as plan
    from hpclm.data.ranks.batches import GenerationBatch
    from hpclm.engines.megatron.ranks.generation import Generator
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
    from hpclm.engines.megatron.ranks.language_model import LanguageModel

    config = transformer_config(model, parallel, arguments.precision, groups.device, variable_lengths=True)
    gpt = build_gpt(model, config, groups)
    # weights large enough that rounding does not change the most likely token
    initialize_weights(gpt, model, 1)
    if not arguments.weights.exists():
        torch.save(gpt.state_dict(), arguments.weights)
    spec = plan.GenerationSpec(max_new_tokens=arguments.new, batch_size=arguments.batch)
    generator = Generator(
        LanguageModel(config, gpt, None, frozen=True), groups, spec, vocab_size=arguments.vocab, eos_id=-1
    )
    rows = _rows(arguments)
    batch = GenerationBatch(
        tokens=rows,
        lengths=(rows.shape[1],) * len(rows),
        position_ids=torch.arange(rows.shape[1], device=rows.device).expand_as(rows),
        virtual_index=torch.full_like(rows, -1),
        task=torch.zeros(len(rows), dtype=torch.int64, device=rows.device),
    )
    return _timed(lambda: generator(batch, range(len(rows))), arguments)


def _hf(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(arguments.threads)
    weights = torch.load(arguments.weights, weights_only=True, map_location="cpu")
    model = GPT2LMHeadModel(shared.gpt2_config(arguments)).eval()  # type: ignore[no-untyped-call]
    model.load_state_dict(shared._as_gpt2(weights, arguments), strict=False)
    model.to(arguments.device, torch.bfloat16 if arguments.precision == "bf16" else torch.float32)
    model.generation_config.eos_token_id = None
    rows = _rows(arguments)

    def answer() -> list[list[int]]:
        with torch.inference_mode():
            made = model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=arguments.new,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        tokens: list[list[int]] = made[:, rows.shape[1] :].tolist()
        return tokens

    return _timed(answer, arguments)


_SIDES = {"hpclm": _hpclm, "hf": _hf}

if __name__ == "__main__":
    main()
