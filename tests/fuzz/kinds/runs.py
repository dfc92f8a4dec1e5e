"""A runs folder: `status`, `logs`, `collect`, `nodes`, `resume` and `cancel`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import odd_values, raw_bytes, trees
from tests.fuzz.run_folder import make_runs

_RUNS = ("whole-0001", "broken-0002", "sweep-0003", "sweep-0003.001")
_CONTROL = ("\x1b", "\x07", "\x9b")


def make(rng: Random, folder: Path) -> list[str]:
    runs = folder / "runs"
    make_runs(runs)
    files = [path for path in sorted(runs.rglob("*")) if path.is_file()]
    chosen = rng.choice(_RUNS[:3])
    # files that most commands read come more often
    often = [path for path in files if path.name in _OFTEN and chosen in path.parts]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice(often) if often and rng.random() < 0.75 else rng.choice(files)
        _damage(path, rng)
    if rng.random() < 0.12:
        _extra(rng, runs / chosen)
    run = (
        chosen
        if rng.random() < 0.8
        else rng.choice(
            (*_RUNS, "whole", "", "x", "./runs/whole-0001", "runs/broken-0002", "a\x1b", "\udcff", "..", "x" * 300, ".")
        )
    )
    return [*_command(rng, run), "--runs-dir", "runs"]


_OFTEN = (
    "run.json",
    "result.json",
    "progress.json",
    "events.jsonl",
    "state.json",
    "decision.json",
    "00000.json",
    "sweep.json",
    "scheduler.json",
    "100_exit",
)


def _command(rng: Random, run: str) -> list[str]:
    shown = rng.choice(([], ["--json"]))
    return rng.choice(
        (
            ["status", *shown],
            ["status", *shown],
            ["status", run, *shown],
            ["status", run, *shown, "--metric", rng.choice(("exact_match", "x", "val_loss"))],
            ["logs", run],
            ["logs", run, "--stage", "pretrain", "--rank", rng.choice(("0", "1", "-1", "9" * 20))],
            ["collect", run, *shown],
            ["collect", run, "--out", "out", "--pred-file", "predictions.txt"],
            ["nodes", *shown],
            ["nodes", "--forget", rng.choice(("n1", "n2", "x\x1b"))],
            ["resume", run, *shown],
            ["cancel", run],
        )
    )


def _damage(path: Path, rng: Random) -> None:
    if not path.is_file() or path.is_symlink():
        return
    way = rng.random()
    data = path.read_bytes()
    if way < 0.08:
        raw_bytes.replace_special(path, rng)
    elif way < 0.1:
        path.unlink()
    elif way < 0.12:
        path.chmod(0)
    elif path.suffix == ".json" and way < 0.82:
        path.write_bytes(_document(data, rng))
    elif path.suffix == ".jsonl" and way < 0.82:
        lines = data.splitlines(keepends=True) or [b"{}\n"]
        at = rng.randrange(len(lines))
        lines[at] = _document(lines[at], rng) + b"\n"
        path.write_bytes(b"".join(lines))
    elif path.name.endswith("_exit") and way < 0.8:
        path.write_text(
            rng.choice(
                (
                    "",
                    "41",
                    "x y z",
                    "41 nan -",
                    "41 inf TERM",
                    "9" * 5000 + " 1 -",
                    "41 1e999 -",
                    "1 2 3 4",
                    "-9 0 TERM",
                    "² 1 -",
                )
            )
        )
    elif path.suffix in (".log", ".txt"):
        # a log is shown as it is
        path.write_bytes(
            rng.choice((b"", b"\xff\xfe\n", b"no end", b"\r\n" * 50, b"x" * 3_000_000, "é\u2028".encode(), b"\x00\n"))
        )
    else:
        path.write_bytes(raw_bytes.damaged(data, rng, 3))


def _document(data: bytes, rng: Random) -> bytes:
    """A JSON document with changes; one that is damaged already stays as it is."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return raw_bytes.encoded(trees.json_text(trees.mutated(tree, rng, _value)))


def _value(rng: Random) -> Any:
    """No absolute path: `resume` writes where the record says."""
    found = odd_values.json_value(rng)
    while isinstance(found, str) and found.startswith(("/", "~", "..")):
        found = odd_values.json_value(rng)
    return rng.choice(_WORDS) if rng.random() < 0.15 else found


_WORDS: tuple[Any, ...] = (
    "completed", "failed", "running", "pending", "cancelled", "unknown", "skipped", "timeout", "slurm", "local",
    "nothing", "001-00", "001-01", "002-00", "pretrain", "evaluate", "restart", "stop", "requeue", "signal", "limit",
    "start", "end", 2, "gpu",
)  # fmt: skip


def _extra(rng: Random, run: Path) -> None:
    """Files and folders that nothing of hpclm makes."""
    attempts = run / "stages" / "pretrain" / "attempts"
    name = rng.choice(
        (
            "001-00.bak",
            "001-",
            "-01",
            "1-1",
            "001-00-00",
            "999-99",
            "²-³",
            "001-0\x1b",
            "\udcff",
            "9" * 30 + "-0",
            "001-01 (copy)",
        )
    )
    where = rng.choice(
        (attempts / name, run.parent / rng.choice(("x", "a\x1b", "\udcff", ".hidden", "-rf")), run / "stages" / "other")
    )
    if rng.random() < 0.7:
        (where / "ranks").mkdir(parents=True, exist_ok=True)
        (where / "logs").mkdir(exist_ok=True)
    elif where.parent.is_dir():
        where.symlink_to(rng.choice((".", "nowhere", "/dev/zero", where.name)))
    if where.is_dir() and where.parent == run.parent:
        (where / "run.json").write_text(
            rng.choice(("", "{}", '{"version": 2}', "[" * 50_000, '{"version": "\\u001b"}'))
        )
