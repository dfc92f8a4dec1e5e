"""What the cluster offers, as sinfo shows it."""

from __future__ import annotations

import re

from hpclm.core.errors import SchedulerError
from hpclm.schedulers.capabilities import Partition
from hpclm.schedulers.commands import PROBE_S, run_command


def partitions() -> list[Partition]:
    """What the cluster offers. A partition with different nodes is described by its largest. Raises SchedulerError."""
    done = run_command(["sinfo", "--noheader", "--format=%P|%a|%D|%c|%m|%l|%G"], PROBE_S)
    if done.code:
        raise SchedulerError(f"sinfo: {done.said}")
    return parse_sinfo(done.out)


def parse_sinfo(text: str) -> list[Partition]:
    """One line per group of similar nodes; groups of one partition are merged."""
    merged: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7:
            continue
        name, up, nodes, cpus, memory, limit, gres = fields
        old, gpus = merged.get(name.rstrip("*")), parse_gres(gres)
        merged[name.rstrip("*")] = Partition(
            name=name.rstrip("*"),
            default=name.endswith("*"),
            up=up == "up",
            nodes=_number(nodes, 0) + (old.nodes if old else 0),
            cpus_per_node=max(_number(cpus, 0), (old and old.cpus_per_node) or 0) or None,
            memory_mib_per_node=max(_number(memory, 0), (old and old.memory_mib_per_node) or 0) or None,
            gpus_per_node=max(sum(count for _, count in gpus), old.gpus_per_node if old else 0),
            time_limit_min=parse_minutes(limit),
            gpu_types=_merged_types(old.gpu_types if old else (), gpus),
        )
    return list(merged.values())


def _number(text: str, default: int) -> int:
    digits = text.rstrip("+")  # `16+`: the smallest of different nodes
    return int(digits) if digits.isdecimal() else default


def parse_gres(gres: str) -> list[tuple[str, int]]:
    """Type and count of the GPUs in `gpu:a100:4(S:0-1),nic:2` or `gpu:8`; the type is "" where there is none."""
    found = []
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):  # (S:0,2-3): the sockets it is attached to
        kind, *rest = part.strip().split(":")
        if kind == "gpu":
            counted = bool(rest) and rest[-1].isdecimal()
            words = [word for word in (rest[:-1] if counted else rest) if word not in ("no_consume", "(null)")]
            found.append((words[0] if words else "", int(rest[-1]) if counted else 1))
    return found


def _merged_types(known: tuple[tuple[str, int], ...], gpus: list[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """The most a node has of each type, over all groups of nodes."""
    most = dict(known)
    for name in dict.fromkeys(name for name, _ in gpus if name):
        here = sum(count for one, count in gpus if one == name)
        most[name] = max(most.get(name, 0), here)
    return tuple(most.items())


def parse_minutes(text: str) -> int | None:
    """Slurm's `days-hours:minutes:seconds`, shortened from the left, in whole minutes; None for `infinite`."""
    days, dash, rest = text.rpartition("-")
    pieces = rest.split(":")
    if not all(piece.isdecimal() for piece in [*pieces, *([days] if dash else [])]):
        return None
    numbers = [int(piece) for piece in pieces]
    if dash:
        hours, minutes = [*numbers, 0, 0][:2]
        return int(days) * 1440 + hours * 60 + minutes
    return numbers[0] * 60 + numbers[1] if len(numbers) == 3 else numbers[0]
