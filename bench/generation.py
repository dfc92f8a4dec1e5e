"""Tokens per second of greedy generation: hpclm against Hugging Face `generate`, on the same weights and prompts.

    python bench/generation.py                 # alternates both, prints medians and the ratio
    python bench/generation.py --layers 12 --hidden 768 --heads 12 --batch 4
    python bench/generation.py --rows assistant-data/assistant_test_ground_truth.jsonl --count 160 --batch 32

With --rows, prompts and answers have the lengths of a test file's (a token for four characters), a batch has rows of
similar length on both sides, and a row ends where its answer does.

Each measurement is a process of its own with the same threads; both must give the same tokens, and without --rows
neither ends a row early.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
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
    parser.add_argument("--rows", type=Path, help="JSON lines with utterance and label")
    parser.add_argument("--count", type=int, default=160, help="how many of them")
    shared.add_place(parser)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    # the positions of the mapping's model
    arguments.tokens = max(sum(map(max, zip(*batch, strict=True))) for batch in _lengths(arguments))
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


def _lengths(arguments: argparse.Namespace) -> list[list[tuple[int, int]]]:
    """Tokens of prompt and answer of each row, in batches."""
    if arguments.rows is None:
        return [[(arguments.prompt, arguments.new)] * arguments.batch]
    with arguments.rows.open() as file:
        rows = [json.loads(line) for line in itertools.islice(file, arguments.count)]
    found = sorted((len(row["utterance"]) // 4 + 8, len(row["label"]) // 4 + 1) for row in rows)
    return [found[start : start + arguments.batch] for start in range(0, len(found), arguments.batch)]


def _prompts(arguments: argparse.Namespace) -> list[list[list[int]]]:
    draw = random.Random(1)
    return [[[draw.randrange(arguments.vocab) for _ in range(n)] for n, _ in batch] for batch in _lengths(arguments)]


def _wanted(arguments: argparse.Namespace) -> list[int]:
    """Tokens of each answer."""
    return [new for batch in _lengths(arguments) for _, new in batch]


def _timed(answers: Callable[[], list[list[int]]], arguments: argparse.Namespace) -> dict[str, Any]:
    """`answers`: to all rows."""
    found = answers()
    began = time.perf_counter()
    for _ in range(2):
        answers()
    seconds = (time.perf_counter() - began) / 2
    wanted = _wanted(arguments)
    assert [len(row) for row in found] == wanted
    return {"answers": found, "tokens_per_s": sum(wanted) / seconds}


def _hpclm(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    parallel, groups, model = shared._world(arguments, init_std=0.2)
    from hpclm.core import spec as plan
    from hpclm.data.templates import Example
    from hpclm.engines.megatron.ranks.generation import Generator
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
    from hpclm.engines.megatron.ranks.language_model import LanguageModel

    config = transformer_config(model, parallel, arguments.precision, groups.device, variable_lengths=True)
    gpt = build_gpt(model, config, groups)
    # weights large enough that rounding does not change the most likely token
    initialize_weights(gpt, model, 1)
    if not arguments.weights.exists():
        torch.save(gpt.state_dict(), arguments.weights)
    wanted = _wanted(arguments)
    spec = plan.GenerationSpec(max_new_tokens=max(wanted), batch_size=arguments.batch)

    class Ending(Generator):
        """Ends each row at its length."""

        def _is_whole(self, name: int, answer: list[int]) -> bool:
            return len(answer) == wanted[name]

    generator = Ending(
        LanguageModel(config, gpt, None, frozen=True), groups, spec, vocab_size=arguments.vocab, eos_id=-1
    )
    prompts = list(itertools.chain.from_iterable(_prompts(arguments)))
    nothing = [([-1] * len(row), [0.0] * len(row)) for row in prompts]
    examples = [Example(row, *nothing[n], "task", 0, n, "", None) for n, row in enumerate(prompts)]

    def answers() -> list[list[int]]:
        made: dict[int, list[int]] = {}
        for some in generator.stream(examples, 0):
            made |= some
        return [made[n] for n in range(len(examples))]

    return _timed(answers, arguments)


def _hf(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import GPT2LMHeadModel, StoppingCriteria, StoppingCriteriaList

    torch.set_num_threads(arguments.threads)
    weights = torch.load(arguments.weights, weights_only=True, map_location="cpu")
    model = GPT2LMHeadModel(shared.gpt2_config(arguments)).eval()  # type: ignore[no-untyped-call]
    model.load_state_dict(shared._as_gpt2(weights, arguments), strict=False)
    model.to(arguments.device, torch.bfloat16 if arguments.precision == "bf16" else torch.float32)
    model.generation_config.eos_token_id = None
    prompts, lengths = _prompts(arguments), _lengths(arguments)

    class AtLength(StoppingCriteria):
        """Ends each row at its length."""

        def __init__(self, ends: torch.Tensor) -> None:
            self.ends = ends

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **unused: Any) -> Any:
            return self.ends <= input_ids.shape[1]

    def answer(number: int) -> list[list[int]]:
        rows, news = prompts[number], [new for _, new in lengths[number]]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=arguments.device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=arguments.device)
        ends = torch.tensor([width + new for new in news], device=arguments.device)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=real,
                max_new_tokens=max(news),
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([AtLength(ends)]),
            )
        tokens: list[list[int]] = made[:, width:].tolist()
        return [row[:new] for row, new in zip(tokens, news, strict=True)]

    return _timed(lambda: [row for number in range(len(prompts)) for row in answer(number)], arguments)


_SIDES = {"hpclm": _hpclm, "hf": _hf}

if __name__ == "__main__":
    main()
