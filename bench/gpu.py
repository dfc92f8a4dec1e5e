"""What one GPU does: matrix products, pre-training and p-tuning as shares of them, checkpoints, and hpclm's peers.

    python bench/gpu.py --out report            # all of it, on the first GPU: report/measurements.json and a table
    python bench/gpu.py --out report --device cpu   # a rehearsal with toy shapes, for the code alone

Model FLOPs of a token are 6N in pre-training and 4N in p-tuning (no gradients of weights), N without the tables of
words and positions but with the output layer, plus 6·L·h·s and 4·L·h·s for causal attention (half of Chowdhery et al.
2022, arXiv:2204.02311, appendix B, which counts both triangles). Each measurement is a process of its own, so that none
is slowed or saved by what another left on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.forked import forked, load
else:
    # as a script, whose own folder is on the path
    from forked import forked, load

PEAK = "matrix products"
HERE = Path(__file__).parent
# layers, hidden, heads, sequence, micro-batch, and what is trained; 5b with as many layers as fit beside its optimizer
SHAPES: dict[str, tuple[int, int, int, int, int, str]] = {
    "1.3b": (24, 2048, 16, 2048, 4, "pretrain"),
    "5b-layers": (8, 4096, 32, 2048, 2, "pretrain"),
    "20b": (44, 6144, 48, 2048, 1, "p-tuning"),
    "toy": (2, 64, 4, 32, 2, "pretrain"),
    "toy-ptune": (2, 64, 4, 32, 2, "p-tuning"),
}
_TOY_TUNING = ["--layers", "1", "--hidden", "64", "--heads", "2", "--vocab", "300", "--rows", "40", "--steps", "2"]
PEERS = {
    "p-tuning against PEFT": ["prompt_learning", "--batch", "16", "--steps", "30"],
    "generation against transformers": ["generation", "--batch", "32", "--prompt", "128", "--new", "128"],
}
# LoRA on the rows of instructions, which the sides start in processes of their own
TUNING = ["--rows", "2000", "--micro", "8", "--batch", "16", "--steps", "20"]
PEER_SHAPE = ["--layers", "24", "--hidden", "1024", "--heads", "16", "--vocab", "50304", "--precision", "bf16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="measurements whose names have one of these words")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.device == "cuda":
        load()
    found: dict[str, Any] = {}
    for name, work in _all(arguments, found):
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        try:
            found[name] = forked(work)
        except RuntimeError as error:
            found[name] = f"failed: {error}"
        _share_of_peak(found, name)
        # as they come, so that what was measured is there if the time is over
        (arguments.out / "measurements.json").write_text(json.dumps(found, indent=2) + "\n")
        one = found[name]
        words = one if isinstance(one, str) else ", ".join(f"{key} {value}" for key, value in one.items())
        print(f"{name}: {words}", flush=True)


def _all(arguments: argparse.Namespace, found: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    gpu = arguments.device == "cuda"
    yield "device", lambda: _device(arguments)
    yield PEAK, lambda: _matmul(arguments)
    for shape in ("1.3b", "5b-layers", "20b") if gpu else ("toy", "toy-ptune"):
        yield f"{SHAPES[shape][-1]} {shape}", functools.partial(_training, arguments, shape)
    yield "checkpoint", lambda: _checkpoint(arguments, "1.3b" if gpu else "toy")
    for name, words in PEERS.items():
        argv = [*words[1:], "--device", arguments.device, "--rounds", "3"]
        argv += PEER_SHAPE if gpu else ["--steps", "2"] if "learning" in words[0] else []
        if gpu:
            yield name, functools.partial(_said, words[0], argv)
        else:
            yield name, functools.partial(_words_of, [sys.executable, str(HERE / f"{words[0]}.py"), *argv])
    yield "tokenising", functools.partial(_tokenising, 3000 if gpu else 50)
    sizes = [*PEER_SHAPE, *TUNING, "--rounds", "2"] if gpu else [*_TOY_TUNING, "--rounds", "1"]
    tuning = [sys.executable, str(HERE / "fine_tuning.py"), "--device", arguments.device, *sizes]
    yield "LoRA against Trainer and PEFT", functools.partial(_words_of, tuning)


def _tokenising(files: int) -> dict[str, Any]:
    """Python's own sources, on all of this machine's cores."""
    from hpclm.core.corpus_spec import CorpusSpec
    from hpclm.core.spec import TokenizerSpec
    from hpclm.data.corpus.tokenizing import tokenize
    from hpclm.data.tokenizers import Tokenizer

    paths = sorted(Path(json.__file__).parents[1].rglob("*.py"))[:files]
    texts = [path.read_text(errors="replace") for path in paths]
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        corpus, prefix = Path(folder) / "corpus.jsonl", Path(folder) / "tokens"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        Tokenizer.train(texts[:200], 8000).save(Path(folder))
        own = TokenizerSpec("json", tokenizer_file=str(Path(folder) / "tokenizer.json"))
        made, _ = tokenize(CorpusSpec([str(corpus)], own, str(prefix), append_eod=True), workers, lambda progress: None)
    rate = made.counts.tokens / made.seconds
    return {"encoder": made.encoder, "workers": workers, "tokens/s": round(rate)}


def _share_of_peak(found: dict[str, Any], name: str) -> None:
    one, peak = found[name], found.get(PEAK)
    if name != PEAK and isinstance(one, dict) and "TFLOP/s" in one and isinstance(peak, dict):
        one["share of the matrix products"] = round(one["TFLOP/s"] / peak["TFLOP/s"], 3)


def _said(module: str, argv: list[str]) -> str:
    """What a comparison prints; it forks from this process, in which everything is loaded."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        importlib.import_module(module).main(argv)
    return said.getvalue().strip()


def _words_of(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        return "failed: " + (done.stderr.strip().splitlines() or ["no words"])[-1]
    # DeepSpeed warns there, too
    return "\n".join(line for line in done.stdout.splitlines() if "[WARNING]" not in line)


def _device(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    if arguments.device == "cpu":
        return {"name": "cpu", "torch": torch.__version__}
    return {
        "name": torch.cuda.get_device_name(0),
        "memory GiB": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
    }


def _matmul(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    size = 8192 if arguments.device == "cuda" else 256
    a, b = (torch.randn(size, size, device=arguments.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = _seconds(lambda: a @ b, 20, arguments)
    return {"size": size, "TFLOP/s": round(2 * size**3 / seconds / 1e12, 4)}


def _seconds(work: Any, times: int, arguments: argparse.Namespace) -> float:
    """Of one call, after three that are not counted."""
    import torch

    wait: Any = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    for _ in range(3):
        work()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - began) / times


def _world(arguments: argparse.Namespace, shape: str) -> tuple[Any, Any, Any]:
    """The spec of the shape, the groups of this process alone, and its model with random weights."""
    import torch
    import torch.distributed as dist

    from hpclm.core import spec as plan
    from hpclm.core.parallel_spec import ParallelSpec
    from hpclm.engines.megatron.ranks import cpu_standins

    gpu = arguments.device == "cuda"
    if not gpu:
        cpu_standins.install()
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks import trace
    from hpclm.worker.ranks.devices import set_arithmetic

    layers, hidden, heads, tokens, micro, task = SHAPES[shape]
    words = 50304 if hidden > 64 else 512
    model = plan.ModelSpec(
        layers, hidden, 4 * hidden, heads, heads, hidden // heads, tokens, words, words, position_embedding="rope"
    )
    spec = plan.StageSpec(
        run="bench", stage="bench", stage_dir="", task=task, device="gpu" if gpu else "cpu", model=model,
        tokenizer=plan.TokenizerSpec("base"), parallel=ParallelSpec(1, 1, 1, 1, 1, 1),
        batch=plan.BatchSpec(2 * micro, micro, 2), trainer=plan.TrainerSpec("bf16", max_steps=10**6),
        optim=plan.OptimSpec(lr=1e-5), checkpoint=plan.CheckpointSpec(),
        text=plan.TextData([], seq_length=tokens) if task == "pretrain" else None,
        data=plan.PromptData([], [], [], max_seq_length=tokens),
        templates=[plan.TaskTemplate("task", "", 10, [10])], prompt=plan.PromptSpec("tpmlp", 1024),
    )  # fmt: skip
    place = torch.device("cuda", 0) if gpu else torch.device("cpu")
    set_arithmetic("bf16", deterministic=False)
    groups = process_groups.initialize(dist.HashStore(), 0, spec.parallel, place, 1)
    (made,), batch, _ = (trace._pretraining if task == "pretrain" else trace._prompt_learning)(spec, groups)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    return spec, groups, (made, batch)


def _training(arguments: argparse.Namespace, shape: str) -> dict[str, Any]:
    from types import SimpleNamespace

    import torch

    from hpclm.engines.megatron.ranks import trace
    from hpclm.engines.megatron.ranks.training import TrainingSteps

    spec, groups, (model, batch) = _world(arguments, shape)
    ignored: Any = SimpleNamespace(requested=False)
    count = spec.batch.gradient_accumulation_steps
    trainer = TrainingSteps(spec, groups, [model], trace._Batches([batch] * count), ignored)
    steps = iter(range(10**6))
    seconds = _seconds(lambda: trainer.step(next(steps)), arguments.steps, arguments)
    layers, hidden, _, tokens, _, task = SHAPES[shape]
    sizes = {name: parameter.numel() for name, parameter in model.gpt.named_parameters()}
    weights = sum(size for name, size in sizes.items() if "position_embeddings" not in name)
    factor = 6 if task == "pretrain" else 4
    flops = factor * (weights + layers * hidden * tokens)
    made = batch.tokens.numel() * count / seconds
    held = torch.cuda.max_memory_allocated() / 2**30 if arguments.device == "cuda" else 0.0
    return {
        "parameters": sum(sizes.values()),
        "tokens/s": round(made, 1),
        "TFLOP/s": round(made * flops / 1e12, 4),
        "seconds/step": round(seconds, 4),
        "memory GiB": round(held, 2),
    }


def _checkpoint(arguments: argparse.Namespace, shape: str) -> dict[str, Any]:
    from hpclm.formats.ranks import checkpoint_store
    from hpclm.formats.ranks.shards import sharded_tensors

    _, _, (model, _) = _world(arguments, shape)
    shards = sharded_tensors(model.gpt)
    gigabytes = sum(one.data.numel() * one.data.element_size() for one in shards) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        checkpoint_store.save(Path(folder) / "step", shards, {})
        saved = time.perf_counter()
        checkpoint_store.load(Path(folder) / "step", shards)
        loaded = time.perf_counter()
    return {
        "GB": round(gigabytes, 3),
        "saved GB/s": round(gigabytes / (saved - began), 2),
        "loaded GB/s": round(gigabytes / (loaded - saved), 2),
    }


if __name__ == "__main__":
    main()
