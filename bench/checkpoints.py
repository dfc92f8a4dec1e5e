"""Checkpoints: steps while one is written asynchronously against steps without, the time that each kind of saving holds
the training, and gigabytes a second against a plain copy.

    python bench/checkpoints.py
    python bench/checkpoints.py --folder /scratch/me --layers 24 --hidden 1024 --heads 16 --tokens 1024 --device cuda

One rank, on a CPU with one thread, so that a second core is free to write, as the host's cores are beside a GPU (there
in bf16, with moments and master weights in fp32). A round is one process, and has all sides in turn: `steps` steps
without saving; as many while an asynchronous save is under way; a synchronous save; a copy of its files (read from the
page cache, written and synchronised to the disk); a check of every byte against the manifest; loading the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TITLES = {
    "step_ratio": "step while a checkpoint is written / step without",
    "held_async_s": "training held by an asynchronous save, s",
    "held_sync_s": "training held by a synchronous save, s",
    "save_gb_s": "synchronous save, GB/s (hashed, synchronised)",
    "copy_gb_s": "plain copy, GB/s (not hashed, synchronised)",
    "verify_gb_s": "check of every byte, GB/s",
    "load_gb_s": "load, GB/s",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = (("layers", 8), ("hidden", 512), ("heads", 8), ("vocab", 16384), ("tokens", 256), ("micro", 2))
    for name, default in (*sizes, ("steps", 12), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where checkpoints go; else a temporary folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measured(arguments)))
        return
    on_cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}
    environment = {**os.environ, **on_cpu}
    found = []
    for _ in range(arguments.rounds):
        argv = [sys.executable, __file__, *sys.argv[1:], "--measure"]
        run = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            sys.exit(run.stderr[-4000:])
        found.append(json.loads(run.stdout.splitlines()[-1]))
    print(f"checkpoint: {found[0]['gb']:.2f} GB, step {statistics.median(one['step_s'] for one in found):.3f} s")
    for key, title in TITLES.items():
        values = [one[key] for one in found]
        print(f"{title}: {statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})")


def _measured(arguments: argparse.Namespace) -> dict[str, float]:
    if arguments.device == "cpu":
        from hpclm.engines.megatron.ranks import cpu_standins

        cpu_standins.install()
    from hpclm.core.spec import CheckpointSpec
    from hpclm.formats.ranks import checkpoint_store
    from hpclm.formats.ranks.checkpoint_manager import CheckpointManager

    trainer = _trainer(arguments)
    numbers = iter(range(10**9))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)

        def manager(kind: str) -> CheckpointManager:
            policy = CheckpointSpec(keep_last=1, asynchronous=kind == "async")
            return CheckpointManager(folder / kind, policy, lambda made: None)

        def save(to: CheckpointManager, step: int) -> float:
            began = time.perf_counter()
            to.save(step, trainer.shards(), {"loss": 0.0}, None)
            return time.perf_counter() - began

        for _ in range(3):
            trainer.step(next(numbers))
        beside, alone = manager("async"), manager("sync")
        save(beside, 1)  # makes the buffers
        beside.settle()
        plain = _seconds(lambda: trainer.step(next(numbers)), arguments.steps)
        held, during = 0.0, list[float]()
        while len(during) < arguments.steps:
            held = save(beside, 2)
            assert beside.saving is not None
            while beside.saving.thread.is_alive() and len(during) < arguments.steps:
                during += _seconds(lambda: trainer.step(next(numbers)), 1)
            beside.settle()
        held_sync = save(alone, 2)
        made = folder / "sync" / "step-00000002"
        size = sum(one.stat().st_size for one in made.iterdir()) / 1e9
        copy = _copied(made, folder / "copy")
        verify = _seconds(lambda: alone.resume(), 1)[0]
        load = _seconds(lambda: checkpoint_store.load(made, trainer.shards(loading=True)), 1)[0]
    return {
        "gb": size, "step_s": statistics.median(plain),
        "step_ratio": statistics.median(during) / statistics.median(plain),
        "held_async_s": held, "held_sync_s": held_sync,
        "save_gb_s": size / held_sync, "copy_gb_s": size / copy, "verify_gb_s": size / verify, "load_gb_s": size / load,
    }  # fmt: skip


def _seconds(work: Any, times: int) -> list[float]:
    import torch

    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def _copied(source: Path, target: Path) -> float:
    began = time.perf_counter()
    target.mkdir()
    for one in source.iterdir():
        shutil.copyfile(one, target / one.name)
        with (target / one.name).open("rb") as file:
            os.fsync(file.fileno())
    return time.perf_counter() - began


def _trainer(arguments: argparse.Namespace) -> Any:
    import torch
    import torch.distributed as dist

    from hpclm.core import spec as plan
    from hpclm.core.parallel_spec import ParallelSpec
    from hpclm.data.ranks.batches import TrainingBatch
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks import trace
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.training import TrainingSteps
    from hpclm.worker.signals import StopFlag

    parallel = ParallelSpec(1, 1, 1, 1, 1, 1)
    on_gpu = arguments.device == "cuda"
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    groups = process_groups.initialize(dist.HashStore(), 0, parallel, device, 1)
    model = plan.ModelSpec(
        num_layers=arguments.layers, hidden_size=arguments.hidden, ffn_hidden_size=4 * arguments.hidden,
        num_attention_heads=arguments.heads, num_query_groups=arguments.heads,
        kv_channels=arguments.hidden // arguments.heads, max_position_embeddings=arguments.tokens,
        vocab_size=arguments.vocab, padded_vocab_size=arguments.vocab,
    )  # fmt: skip
    spec = plan.StageSpec(
        run="bench", stage="bench", stage_dir="", task="pretrain", device="gpu" if on_gpu else "cpu", model=model,
        tokenizer=plan.TokenizerSpec("base"), parallel=parallel,
        batch=plan.BatchSpec(arguments.micro, arguments.micro, 1),
        trainer=plan.TrainerSpec("bf16" if on_gpu else "fp32", max_steps=10**6), optim=plan.OptimSpec(1e-4),
        checkpoint=plan.CheckpointSpec(),
    )  # fmt: skip
    config = transformer_config(model, parallel, spec.trainer.precision, groups.device, variable_lengths=False)
    gpt = build_gpt(model, config, groups)
    initialize_weights(gpt, model, 1)
    numbers = torch.randint(0, arguments.vocab, (arguments.micro, arguments.tokens + 1), device=device)
    batch = TrainingBatch(
        tokens=numbers[:, :-1].contiguous(), labels=numbers[:, 1:].contiguous(),
        position_ids=torch.arange(arguments.tokens, device=device).expand(arguments.micro, -1).contiguous(),
        loss_mask=torch.ones(arguments.micro, arguments.tokens, device=device),
    )  # fmt: skip
    language_model = LanguageModel(config, gpt, None, frozen=False)
    return TrainingSteps(spec, groups, [language_model], trace._Batches([batch]), StopFlag())


if __name__ == "__main__":
    main()
