"""Fine-tuning: hpclm's engine hf against Hugging Face's Trainer with PEFT, on the same model, rows and processors.

    python bench/fine_tuning.py                       # LoRA, rows as they are
    python bench/fine_tuning.py --method full --packing
    python bench/fine_tuning.py --device cuda --precision bf16 --layers 24 --hidden 1024 --heads 16 --vocab 50304

Rows have the lengths of Alpaca's (most of them short, a few long), two fifths of each is its answer. Trainer pads the
rows of a micro-batch to the longest, as transformers' DataCollatorForSeq2Seq does; hpclm puts them in a
row. With --packing hpclm fills samples of --length tokens; Trainer, which has no packing, takes the rows as before.
What is compared is rows a second. The losses of the first step, on the same rows, must agree.
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
from typing import Any

SKIPPED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = (("layers", 4), ("hidden", 256), ("heads", 8), ("vocab", 8192), ("length", 512), ("rows", 400))
    for name, default in (
        *sizes,
        ("micro", 4),
        ("batch", 8),
        ("steps", 12),
        ("rounds", 3),
        ("threads", os.cpu_count()),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--side", choices=("hpclm", "trainer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        warnings.simplefilter("ignore")
        print(json.dumps({"hpclm": _ours, "trainer": _trainer}[arguments.side](arguments)))
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, Any]]] = {"hpclm": [], "trainer": []}
    with tempfile.TemporaryDirectory() as folder:
        _make(arguments, Path(folder))
        for _ in range(arguments.rounds):
            for side, results in found.items():
                argv = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
                env = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
                done = subprocess.run(argv, capture_output=True, text=True, env=env)
                if done.returncode:
                    sys.exit(done.stderr[-4000:])
                results.append(json.loads(done.stdout.splitlines()[-1]))
    losses = {side: results[0]["loss"] for side, results in found.items()}
    tolerance = 1e-3 if arguments.precision == "fp32" else 5e-2
    if not arguments.packing and abs(losses["hpclm"] - losses["trainer"]) > tolerance:
        sys.exit(f"first losses differ: {losses}: not the same work")
    print(f"first loss: hpclm {losses['hpclm']:.4f}, Trainer {losses['trainer']:.4f}")
    for key, title in (("rows_per_s", "rows per second"), ("peak_mib", "peak memory, MiB")):
        ours, theirs = (statistics.median(item[key] for item in found[side]) for side in found)
        ratios = sorted(a[key] / b[key] for a, b in zip(found["hpclm"], found["trainer"], strict=True))
        print(
            f"{title}: hpclm {ours:.2f}, Trainer {theirs:.2f}, ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def _make(arguments: argparse.Namespace, folder: Path) -> None:
    """The model, and the rows as both sides read them."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads // 2,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    from hpclm.core.fine_tune_spec import InstructionData
    from hpclm.data.ranks.instruction_tokens import TokenRow
    from hpclm.data.ranks.prepared_rows import prepare

    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(4.6, 0.6, arguments.rows), 24, arguments.length).astype(int)

    def rows() -> Any:
        for number, length in enumerate(lengths):
            tokens = draw.integers(0, arguments.vocab, length).tolist()
            asked = int(length * 0.6)
            yield TokenRow(str(number), tokens, [False] * asked + [True] * (length - asked))

    prepare(folder / "rows", rows, InstructionData(max_seq_length=arguments.length))


def _spec(arguments: argparse.Namespace) -> Any:
    from hpclm.core import fine_tune_spec as hf
    from hpclm.core import spec as plan
    from hpclm.core.parallel_spec import ParallelSpec

    batch = arguments.batch
    return hf.FineTuneStageSpec(
        run="bench", stage="bench", stage_dir="", task="fine-tune",
        device="gpu" if arguments.device == "cuda" else "cpu", base=str(arguments.folder / "model"),
        parallel=ParallelSpec(1, 1, 1, 1, 1, 1),
        batch=plan.BatchSpec(batch, arguments.micro, batch // arguments.micro),
        trainer=plan.TrainerSpec(arguments.precision, max_steps=arguments.steps + SKIPPED),
        optim=plan.OptimSpec(lr=1e-4, schedule="constant", beta2=0.999, weight_decay=0.0),
        checkpoint=plan.CheckpointSpec(),
        data=hf.InstructionData(max_seq_length=arguments.length, packing=arguments.packing),
        method=hf.MethodSpec(arguments.method, hf.LoraSpec(16, 32.0, targets=["all-linear"])),
    )  # fmt: skip


def _ours(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    from hpclm.data.ranks.prepared_rows import PreparedRows
    from hpclm.engines.hf.ranks import base_models, fine_tuning
    from hpclm.engines.hf.ranks.document_batches import InstructionBatches
    from hpclm.engines.hf.ranks.hf_groups import DataGroup
    from hpclm.engines.hf.ranks.hf_loading import empty_model, weights_of
    from hpclm.worker.signals import StopFlag

    torch.set_num_threads(arguments.threads)
    on_gpu = arguments.device == "cuda"
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    spec, device = _spec(arguments), torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    group = DataGroup(0, 1, 0, device)
    folder = Path(spec.base)
    model = empty_model(folder, spec.huggingface)
    started = base_models.Started(folder, model, weights_of(model, folder, device), None, "", arguments.vocab)
    loss_model, sharding = fine_tuning.sharded(started, spec, group)
    batches = InstructionBatches(spec, PreparedRows(arguments.folder / "rows"), None, 0, 1)
    steps = fine_tuning.FineTuningSteps(spec, group, loss_model, sharding, batches, StopFlag())
    first = steps.step(0).loss
    for step in range(1, SKIPPED):
        steps.step(step)
    began, rows = time.perf_counter(), 0
    for step in range(SKIPPED, SKIPPED + arguments.steps):
        steps.step(step)
        rows += sum(len(batches.samples[sample]) for sample in batches.order.global_batch(step))
    return _told(first, rows / (time.perf_counter() - began), arguments)


def _trainer(arguments: argparse.Namespace) -> dict[str, float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from hpclm.data.ranks.prepared_rows import PreparedRows
    from hpclm.data.ranks.sampler import GlobalBatchSampler

    torch.set_num_threads(arguments.threads)
    spec, prepared = _spec(arguments), PreparedRows(arguments.folder / "rows")
    order = GlobalBatchSampler(
        len(prepared), global_batch_size=arguments.batch, micro_batch_size=arguments.micro, data_rank=0, data_size=1,
        seed=spec.trainer.seed,
    )  # fmt: skip
    chosen = [row for step in range(arguments.steps + SKIPPED) for row in order.global_batch(step)]
    # as hpclm: what is not trained has the precision that is computed in
    frozen = arguments.method == "lora" and arguments.precision == "bf16"
    model: Any = AutoModelForCausalLM.from_pretrained(spec.base, dtype=torch.bfloat16 if frozen else torch.float32)
    if arguments.method == "lora":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets))

    def collate(some: list[int]) -> dict[str, torch.Tensor]:
        rows = [prepared.row(row) for row in some]
        width = max(len(tokens) for tokens, _ in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        labels, mask = torch.full_like(tokens, -100), torch.zeros_like(tokens)
        for number, (one, learned) in enumerate(rows):
            whole = torch.from_numpy(one.astype("int64"))
            tokens[number, : len(one)], mask[number, : len(one)] = whole, 1
            labels[number, : len(one)] = torch.where(torch.from_numpy(learned), whole, -100)
        return {"input_ids": tokens, "labels": labels, "attention_mask": mask}

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(chosen)

    settings = TrainingArguments(
        output_dir=str(arguments.folder / "out"), per_device_train_batch_size=arguments.micro,
        gradient_accumulation_steps=arguments.batch // arguments.micro, max_steps=arguments.steps + SKIPPED,
        learning_rate=1e-4, lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.999, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=arguments.device == "cpu",
        bf16=arguments.precision == "bf16", optim="adamw_torch_fused", disable_tqdm=True,
    )  # fmt: skip
    made = InOrder(model=model, args=settings, train_dataset=chosen, data_collator=collate, callbacks=[Clock()])
    made.train()
    first = next(row["loss"] for row in made.state.log_history if "loss" in row)
    return _told(first, arguments.steps * arguments.batch / (times[-1] - times[SKIPPED - 1]), arguments)


def _told(loss: float, rate: float, arguments: argparse.Namespace) -> dict[str, float]:
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if arguments.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"loss": loss, "rows_per_s": rate, "peak_mib": peak / 2**20}


if __name__ == "__main__":
    main()
