"""The memory of `hpclm data tokenize`, all its processes together, for 100 MB and 1 GB of the same documents.

    python -m bench.tokenizing_memory CORPUS.jsonl --key content --vocab-file V --merges-file M

Prints the most proportional set size (memory that processes share counts once) that was seen, twenty times a second.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path

from bench.tokenizing import corpus_arguments, hpclm

SIZES = {"100 MB": 100_000_000, "1 GB": 1_000_000_000}


def main() -> None:
    parser = corpus_arguments(__doc__)
    parser.add_argument("--encoder", default="auto")
    options = parser.parse_args()
    text = options.corpus.read_bytes().rstrip(b"\n") + b"\n"
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            options.corpus = Path(folder) / f"{size}.jsonl"
            with options.corpus.open("wb") as file:
                while file.tell() < size:
                    file.write(text)
            began = time.perf_counter()
            most = peak(hpclm(options, Path(folder) / f"of-{size}", options.encoder))
            print(f"{name:8} {most / 2**20:8,.0f} MiB at most, {time.perf_counter() - began:6.0f} s")


def peak(words: list[str]) -> int:
    """Bytes, of a command and its children."""
    most = 0
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=said)
        while child.poll() is None:
            most = max(most, sum(map(_held, _of_session(child.pid))))
            time.sleep(0.05)
        if child.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode()[-2000:])
    return most


def _of_session(leader: int) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(path)
    return found


def _held(process: Path) -> int:
    with contextlib.suppress(OSError):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
