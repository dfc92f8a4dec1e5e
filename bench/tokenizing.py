"""Tokenising a corpus: `hpclm data tokenize` against Megatron-LM's tools/preprocess_data.py, whole commands, in turn.

    python -m bench.tokenizing CORPUS.jsonl --key content --vocab-file V --merges-file M --megatron-lm FOLDER

FOLDER is a checkout of Megatron-LM (core_v0.14.0 runs without a GPU). Both use as many workers; the files must be equal
byte by byte. Prints documents a second of each and the ratio, the median of the rounds, and the spread.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def corpus_arguments(description: str | None) -> argparse.ArgumentParser:
    """What both benches of tokenising are given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--key", default="text")
    parser.add_argument("--vocab-file", type=Path, required=True)
    parser.add_argument("--merges-file", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def main() -> None:
    parser = corpus_arguments(__doc__)
    parser.add_argument("--megatron-lm", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", nargs="*", default=["gigatoken", "tiktoken", "tokenizers"])
    options = parser.parse_args()
    with options.corpus.open("rb") as file:
        documents = sum(1 for _ in file)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            theirs = Path(folder) / f"megatron-{number}"
            seconds = timed(megatron_lm(options, theirs), {"PYTHONPATH": str(options.megatron_lm)})
            rates.setdefault("preprocess_data.py", []).append(documents / seconds)
            for encoder in options.encoder:
                ours = Path(folder) / f"{encoder}-{number}"
                seconds = timed(hpclm(options, ours, encoder), {})
                rates.setdefault(encoder, []).append(documents / seconds)
                for end in (".bin", ".idx"):
                    made = f"{ours}_{options.key}_document{end}"
                    if not filecmp.cmp(made, f"{theirs}_{options.key}_document{end}", shallow=False):
                        raise SystemExit(f"{made} is not Megatron-LM's")
    base = statistics.median(rates["preprocess_data.py"])
    for name, values in rates.items():
        middle = statistics.median(values)
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"{name:20} {middle:10,.0f} documents/s ({spread})  {middle / base:6.2f} times")


def megatron_lm(options: argparse.Namespace, prefix: Path) -> list[str]:
    script = options.megatron_lm / "tools" / "preprocess_data.py"
    words = [sys.executable, "-W", "ignore", str(script), "--input", str(options.corpus), "--json-keys", options.key]
    words += ["--output-prefix", str(prefix), "--tokenizer-type", "GPT2BPETokenizer", "--append-eod"]
    words += ["--vocab-file", str(options.vocab_file), "--merge-file", str(options.merges_file)]
    return [*words, "--workers", str(options.workers)]


def hpclm(options: argparse.Namespace, prefix: Path, encoder: str) -> list[str]:
    words = [sys.executable, "-m", "hpclm.cli", "data", "tokenize", str(options.corpus), "--json-keys", options.key]
    words += ["--out", str(prefix), "--append-eod", "--encoder", encoder, "--workers", str(options.workers)]
    return [*words, "--vocab-file", str(options.vocab_file), "--merges-file", str(options.merges_file)]


def timed(words: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
