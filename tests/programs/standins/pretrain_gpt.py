"""A stand-in for Megatron-LM's pretrain_gpt.py: its own flags and nothing else, its log line, its checkpoint marker."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

INTS = (
    "tensor-model-parallel-size", "pipeline-model-parallel-size", "num-layers", "hidden-size", "ffn-hidden-size",
    "num-attention-heads", "kv-channels", "seq-length", "max-position-embeddings", "micro-batch-size",
    "global-batch-size", "train-iters", "lr-warmup-iters", "seed", "log-interval", "eval-interval", "eval-iters",
    "save-interval", "num-query-groups",
)  # fmt: skip
FLOATS = (
    "norm-epsilon", "hidden-dropout", "attention-dropout", "init-method-std", "lr", "min-lr", "weight-decay",
    "adam-beta1", "adam-beta2", "adam-eps", "clip-grad",
)  # fmt: skip
TEXTS = ("split", "tokenizer-type", "vocab-file", "merge-file", "save", "load")
SWITCHES = (
    "bf16", "fp16", "sequence-parallel", "swiglu", "disable-bias-linear", "untie-embeddings-and-output-weights",
    "group-query-attention", "use-flash-attn",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in INTS:
        parser.add_argument(f"--{name}", type=int)
    for name in FLOATS:
        parser.add_argument(f"--{name}", type=float)
    for name in TEXTS:
        parser.add_argument(f"--{name}")
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--data-path", nargs="+")
    parser.add_argument("--position-embedding-type", choices=["learned_absolute", "rope", "none"])
    parser.add_argument("--normalization", choices=["LayerNorm", "RMSNorm"])
    parser.add_argument("--lr-decay-style", choices=["constant", "linear", "cosine", "inverse-square-root", "WSD"])
    parser.add_argument("--distributed-backend", choices=["nccl", "gloo"])
    given = parser.parse_args()
    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        for step in range(1, given.train_iters + 1):
            print(
                f" iteration {step:8d}/{given.train_iters:8d} | consumed samples: 8 | lm loss: {9 / step:.6E} |",
                flush=True,
            )
    if os.environ["RANK"] == "0":
        Path(given.save, "latest_checkpointed_iteration.txt").write_text(str(given.train_iters))


if __name__ == "__main__":
    main()
