"""What starting a run costs a shared file system: each rank's calls that name a file, from its start to the end of its
first training step; and how long a rank needs for that.

    python bench/startup.py                          # 1, 4 and 16 ranks on this machine's CPU; needs strace
    python bench/startup.py --ranks 4 --kinds        # which paths in the run folder, and how often

The smallest GPT is trained for one step by the local executor, all ranks data-parallel, each under strace. A call
counts where it names a path, lists a folder or synchronises a file; reading and writing open files does not. Every run
has a new payload, as after every submit. Only what changes the folder (changes) always takes a request to a server.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CLONES = "clone,clone3,fork,vfork"
EVERY = f"%file,connect,fsync,getdents64,{CLONES}"
MARKS = f"execve,openat,connect,{CLONES}"  # enough for the times, and little slower than without strace
CHANGES = {"create", "rename", "mkdir", "unlink", "unlinkat", "rmdir", "utimensat", "fsync"}
COLUMNS = (
    *("ranks", "run folder: all ranks", "changes of all", "rank 0", "each other", "… its payload", "… until met"),
    *("… changes", "data: rank 0", "environment: each", "elsewhere: each"),
)
RECIPE = """\
version: 1
name: startup
task: pretrain
model: {{num_layers: 1, hidden_size: 32, num_attention_heads: 2, max_position_embeddings: 32}}
tokenizer: {{train: {{vocab_size: 300}}}}
text: {{paths: [text], pattern: "*.txt", seq_length: 16, validation_fraction: 0}}
resources: {{nodes: 1, devices_per_node: {ranks}, device: cpu, time_limit_min: 60}}
batch: {{global: {ranks}, micro: 1}}
trainer: {{max_steps: 1, precision: fp32}}
optim: {{lr: 1.0e-3}}
"""
# time, call, what a descriptor is, path
LINE = re.compile(r'([\d.]+) (\w+)\((?:(?:AT_FDCWD|\d+)<([^>]*)>)?(?:, )?(?:"([^"]*)")?')
RECORD = re.compile(r"/ranks/\.(\d+)\.json\.\w+\.tmp$")


class Call(NamedTuple):
    at: float
    name: str
    path: str


@dataclass
class Rank:
    """A rank's calls in order, with those of what it starts; `times`: seconds from its start to each mark."""

    rank: int
    calls: list[Call]
    times: dict[str, float] = field(default_factory=dict)
    met: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--timed", type=int, nargs="+", default=[1, 4], help="ranks of the runs that are timed")
    parser.add_argument("--kinds", action="store_true", help="list the paths in the run folder, of ranks 0 and 1")
    parser.add_argument("--folder", type=Path, help="where runs and traces go, and stay; else a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = (arguments.folder or Path(name)).resolve()
        print(f"calls until the first step is done; each other: the median\n{' | '.join(COLUMNS)}", flush=True)
        for count in filter(None, arguments.ranks):
            ranks = _run(folder / f"ranks-{count}", count, EVERY)
            print(_row(ranks), flush=True)
            for rank in ranks[:2] if arguments.kinds else ():
                kinds = Counter(f"{one.name} {_kind(one.path)}" for one in rank.calls if _place(one.path) == "run")
                print(f"  rank {rank.rank}", *(f"{n:6,} {kind}" for kind, n in kinds.most_common()), sep="\n  ")
        for count in filter(None, arguments.timed):
            for rank in _run(folder / f"timed-{count}", count, MARKS)[:2]:
                times = (f"{name} {seconds:.2f}" for name, seconds in rank.times.items())
                print(f"{count} ranks, rank {rank.rank}, seconds since it began:", *times, flush=True)


def _run(where: Path, count: int, calls: str) -> list[Rank]:
    """Submit the recipe and wait for it; every rank by its number."""
    for name in ("text", "traces"):
        (where / name).mkdir(parents=True)
    (where / "text" / "a.txt").write_text("a line of what a small model reads\n" * max(400, 8 * count))
    (where / "recipe.yaml").write_text(RECIPE.format(ranks=count))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    }
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HPCLM_RUNS_DIR": str(where / "runs")}
    # each rank under a tracer of its own: one for all would be the slower the more there are
    strace = ["strace", "-f", "-ff", "-ttt", "-y", "-s", "4096", "--seccomp-bpf", "-o", str(where / "traces" / "t")]
    site = {"scheduler": "local", "python": [*strace, "-e", f"trace={calls}", sys.executable]}
    (where / "site.yaml").write_text(json.dumps(site))
    files = [str(where / "recipe.yaml"), "--site", str(where / "site.yaml")]
    argv = [sys.executable, "-m", "hpclm.cli", "submit", *files, "--wait"]
    if subprocess.run(argv, cwd=ROOT, env=environment, stdout=sys.stderr, check=False).returncode:
        sys.exit(f"the run of {count} ranks failed; see above")
    return _ranks({int(path.suffix[1:]): _read(path) for path in (where / "traces").iterdir()})


def _ranks(read: dict[int, tuple[list[Call], list[int]]]) -> list[Rank]:
    """By what each thread did: a rank is who writes its record, and all that it starts."""
    found = []
    for own, (calls, _) in read.items():
        number = next((match[1] for one in calls if (match := RECORD.search(one.path))), None)
        if number is not None:
            family = [own]
            for one in family:
                family += [child for child in read[one][1] if child in read]
            found.append(Rank(int(number), sorted(call for one in family for call in read[one][0])))
    found.sort(key=lambda rank: rank.rank)
    # rank 0 adds to metrics.jsonl when the first step is done, which no rank can end before the others
    done = next(one.at for one in found[0].calls if one.path.endswith("/metrics.jsonl") and one.name == "create")
    for rank in found:
        _set_times(rank, done)
        rank.calls = [one for one in rank.calls if one.at <= done and one.name not in ("execve", "connect")]
    return found


def _read(path: Path) -> tuple[list[Call], list[int]]:
    """The calls of one thread, and whom it started."""
    calls, started = list[Call](), list[int]()
    for line in path.read_text(errors="replace").splitlines():
        found = LINE.match(line)
        at, name, folder, file = found.groups("") if found else ("", "", "", "")
        if name in CLONES.split(","):
            started += map(int, re.findall(r"= (\d+)$", line))
        elif name == "connect":  # rendezvous asks for the way to this port once all have met
            calls += [Call(float(at), name, "met")] if "htons(9)" in line else []
        elif name and "AT_EMPTY_PATH" not in line:  # that is an open file
            name = "create" if name == "openat" and "O_CREAT" in line else name
            calls.append(Call(float(at), name, file if file[:1] == "/" else f"{folder}/{file}".rstrip("/")))
    return calls, started


def _set_times(rank: Rank, done: float) -> None:
    """When a rank was where, by what it opens."""
    opened = [one for one in rank.calls if one.name in ("openat", "create", "connect")]

    def first(end: str, after: float = 0.0) -> float:
        return next((one.at for one in opened if one.at > after and re.search(end, one.path)), math.nan)

    rank.met = first("^met$")
    marks = {
        "record": first(RECORD.pattern),
        # rank 0 says where it is, the others look for that
        "imports": first("/attempts/[0-9-]*$" if rank.rank else r"/attempts/.*/\.?rendezvous\.json"),
        "met": rank.met,
        "prepared": first("/data/tokenizer.json$", rank.met),
        "model": first("/checkpoints/.model.json"),  # by rank 0 alone, when it is built
        "first step": done,
    }
    rank.times = {name: at - rank.calls[0].at for name, at in marks.items() if not math.isnan(at)}


def _row(ranks: list[Rank]) -> str:
    counts = []
    for rank in ranks:
        places = Counter(_place(one.path) for one in rank.calls)
        inside = [one for one in rank.calls if _place(one.path) == "run"]
        kinds = (("/payload" in one.path, one.at < rank.met, one.name in CHANGES) for one in inside)
        sums = map(sum, zip(*kinds, strict=True))
        counts.append([len(inside), *sums, places["data"], places["environment"], places["elsewhere"]])
    first, each = counts[0], [statistics.median(found) for found in zip(*(counts[1:] or counts), strict=True)]
    calls, _, _, changes, *_ = map(sum, zip(*counts, strict=True))
    row = len(ranks), calls, changes, first[0], *each[:4], first[4], *each[5:]
    return " | ".join(map("{:,.0f}".format, row))


def _place(path: str) -> str:
    if "/runs/startup-" in path:
        return "run"
    if path.startswith((sys.prefix, sys.base_prefix, str(ROOT))):
        return "environment"
    return "data" if "/text" in path else "elsewhere"


def _kind(path: str) -> str:
    """A path in the run folder, without what differs from run to run, from rank to rank and from module to module."""
    path = re.sub(r"\.pyc\.\d+$|\.\w{8}\.tmp$", ".TEMPORARY", re.sub(r"^.*/runs/startup-[^/]*/?", "", path))
    path = re.sub(r"/(\.?)\d{5}\.json", r"/\1RANK.json", path)
    return re.sub(r"^payload/.*?((?:__pycache__)?(?:\.\w+)?)$", r"payload/*\1", path) or "."


if __name__ == "__main__":
    main()
