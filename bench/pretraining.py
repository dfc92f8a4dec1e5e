"""Pre-training steps per second and peak memory: hpclm's trainer against megatron-core's plain example loop.

    python bench/pretraining.py                    # alternates both, prints medians and the ratio
    python bench/pretraining.py --tensor 2         # over two processes, by gloo

The plain loop is that of Megatron-LM's examples/run_simple_mcore_train_loop.py: megatron-core's GPT, its own layers,
torch's Adam and no clipping of gradients. Both sides have the same weights and the same batch; the first losses are
printed and must agree.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from bench.prompt_learning import model_spec
else:
    # as a script, whose own folder is on the path
    from prompt_learning import model_spec

SIDES = ("hpclm", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("hidden", 256), ("heads", 8), ("vocab", 8192), ("tokens", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("micro", 4), ("accumulation", 2), ("steps", 10), ("rounds", 3), ("tensor", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("side", "folder", "rank"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps(_measured(arguments)))
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for side in SIDES:
                found[side].append(_ranks(side, Path(folder), number, arguments.tensor))
    losses = {side: results[0]["loss"] for side, results in found.items()}
    if abs(losses["hpclm"] - losses["plain"]) > 1e-4:
        sys.exit(f"first losses differ: {losses}: not the same work")
    print(f"first loss: hpclm {losses['hpclm']:.6f}, plain loop {losses['plain']:.6f}")
    for key, title in (("steps_per_s", "steps per second"), ("peak_mib", "peak memory of a rank, MiB")):
        ours, theirs = (statistics.median(item[key] for item in found[side]) for side in SIDES)
        ratios = [a[key] / b[key] for a, b in zip(found["hpclm"], found["plain"], strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"{title}: hpclm {ours:.2f}, plain loop {theirs:.2f}, ratio {statistics.median(ratios):.2f} ({spread})")


def _ranks(side: str, folder: Path, number: int, count: int) -> dict[str, float]:
    """What rank 0 says of a side."""
    (folder / f"store-{side}-{number}").unlink(missing_ok=True)
    argv = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), "CUDA_VISIBLE_DEVICES": ""}
    started = [
        subprocess.Popen(
            [*argv, "--rank", f"{rank}:{number}"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    ended = [one.communicate() for one in started]
    for one, (_, words) in zip(started, ended, strict=True):
        if one.returncode:
            sys.exit(words[-4000:])
    found: dict[str, float] = json.loads(ended[0][0].splitlines()[-1])
    return found


def _measured(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    from hpclm.core.parallel_spec import ParallelSpec
    from hpclm.engines.megatron.ranks import cpu_standins

    cpu_standins.install()
    from hpclm.engines.megatron.ranks import groups as process_groups

    rank, number = map(int, arguments.rank.split(":"))
    world = arguments.tensor
    parallel = ParallelSpec(arguments.tensor, 1, 1, world, 1, world)
    store = dist.FileStore(str(Path(arguments.folder) / f"store-{arguments.side}-{number}"), world)
    groups = process_groups.initialize(store, rank, parallel, torch.device("cpu"), 1)
    weights = Path(arguments.folder) / f"weights-{rank}.pt"
    model = model_spec(arguments, arguments.tokens, activation="gelu_exact")
    made = (_hpclm if arguments.side == "hpclm" else _plain)(arguments, model, parallel, groups, weights)
    first = made()
    for _ in range(2):
        made()
    dist.barrier()
    began = time.perf_counter()
    for _ in range(arguments.steps):
        made()
    dist.barrier()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    dist.destroy_process_group()
    return {"loss": first, "steps_per_s": arguments.steps / seconds, "peak_mib": peak}


def _rows(arguments: argparse.Namespace) -> list[tuple[Any, Any]]:
    """Tokens and labels [b, s] of each micro-batch."""
    import torch

    generator = torch.Generator().manual_seed(1)
    shape = (arguments.accumulation, arguments.micro, arguments.tokens + 1)
    rows = torch.randint(0, arguments.vocab, shape, generator=generator)
    return [(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in rows]


def _hpclm(arguments: argparse.Namespace, model: Any, parallel: Any, groups: Any, weights: Path) -> Callable[[], float]:
    import torch

    from hpclm.core import spec as plan
    from hpclm.data.ranks.batches import TrainingBatch
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.training import TrainingSteps
    from hpclm.worker.signals import StopFlag

    positions = torch.arange(arguments.tokens).expand(arguments.micro, -1).contiguous()
    mask = torch.ones(arguments.micro, arguments.tokens)
    batches = [
        TrainingBatch(tokens=tokens, position_ids=positions, labels=labels, loss_mask=mask)
        for tokens, labels in _rows(arguments)
    ]

    class Batches:
        steps_per_epoch = 1

        def train(self, step: int) -> list[TrainingBatch]:
            return batches

        def weight(self, step: int) -> None:
            return None

        def validation(self) -> Any:
            return iter(())

    size = arguments.micro * arguments.accumulation
    spec = plan.StageSpec(
        run="bench", stage="bench", stage_dir="", task="pretrain", device="cpu", model=model,
        tokenizer=plan.TokenizerSpec("base"), parallel=parallel,
        batch=plan.BatchSpec(size, arguments.micro, arguments.accumulation),
        trainer=plan.TrainerSpec("fp32", max_steps=10**6), optim=plan.OptimSpec(1e-4),
        checkpoint=plan.CheckpointSpec(),
    )  # fmt: skip
    config = transformer_config(model, parallel, "fp32", groups.device, variable_lengths=False)
    gpt = build_gpt(model, config, groups)
    initialize_weights(gpt, model, 1)
    if not weights.exists():
        torch.save(gpt.state_dict(), weights)
    language_model = LanguageModel(config, gpt, None, frozen=False)
    trainer = TrainingSteps(spec, groups, [language_model], Batches(), StopFlag())
    count = iter(range(10**9))
    return lambda: trainer.step(next(count)).loss


def _plain(arguments: argparse.Namespace, model: Any, parallel: Any, groups: Any, weights: Path) -> Callable[[], float]:
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=arguments.layers,
        hidden_size=arguments.hidden,
        num_attention_heads=arguments.heads,
        tensor_model_parallel_size=parallel.tensor,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
    )
    gpt = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(),
        vocab_size=arguments.vocab,
        max_sequence_length=arguments.tokens,
        share_embeddings_and_output_weights=model.tie_embeddings,
    )
    gpt.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    optimizer = torch.optim.Adam(gpt.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    positions = torch.arange(arguments.tokens).expand(arguments.micro, -1).contiguous()
    # True where a position may not be attended to
    mask = torch.tril(torch.ones(1, 1, arguments.tokens, arguments.tokens)) < 0.5
    mask = mask.expand(arguments.micro, -1, -1, -1).contiguous()
    ones, rows = torch.ones(arguments.micro, arguments.tokens), _rows(arguments)

    def loss_of(loss_mask: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = torch.sum(output.float().view(-1) * loss_mask.view(-1)) / loss_mask.sum()
        return loss, {"lm loss": loss.detach().clone()}

    def forward(batches: Any, module: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        tokens, labels = next(batches)
        return module(tokens, positions, mask, labels=labels), functools.partial(loss_of, ones)

    run = get_forward_backward_func()

    def step() -> float:
        optimizer.zero_grad()
        losses = run(
            forward_step_func=forward,
            data_iterator=iter(rows),
            model=gpt,
            num_microbatches=arguments.accumulation,
            seq_length=arguments.tokens,
            micro_batch_size=arguments.micro,
            decoder_seq_length=arguments.tokens,
            forward_only=False,
        )
        optimizer.step()
        return sum(float(one["lm loss"]) for one in losses) / len(losses)

    return step


if __name__ == "__main__":
    main()
