"""A site profile from what the scheduler reports, for the user to edit: every choice with its reason next to it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpclm.containers.runtime import runtime_here
from hpclm.core.errors import SchedulerError
from hpclm.core.processes import user_name
from hpclm.schedulers import commands
from hpclm.schedulers.capabilities import Partition
from hpclm.schedulers.slurm.partitions import partitions

# Variables that point to users' large folders on clusters, best first.
_SCRATCH = ("SCRATCH", "PSCRATCH", "WORK", "WORKDIR", "PROJECT")


@dataclass(frozen=True)
class Found:
    """What was found: partitions, the user's accounts (empty without accounting), container runtime, scratch folder."""

    partitions: tuple[Partition, ...]
    accounts: tuple[str, ...]
    runtime: str
    scratch: str | None


def look(environment: Mapping[str, str] = os.environ) -> Found:
    """Query the scheduler and this machine. Raises SchedulerError if there is no scheduler."""
    found = tuple(partitions())
    if not found:
        raise SchedulerError("sinfo shows no partition; ask the cluster's administrators for access")
    folders = (environment.get(name, "") for name in _SCRATCH)
    scratch = next((folder for folder in folders if folder.startswith("/") and Path(folder).is_dir()), None)
    return Found(found, _accounts(), runtime_here(commands.output_of), scratch)


def _accounts() -> tuple[str, ...]:
    """The user's accounts by sacctmgr; none without accounting, which is not an error."""
    if shutil.which("sacctmgr") is None:
        return ()
    try:
        done = commands.run_command(
            ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user_name()}", "format=account"],
            15,
        )
    except SchedulerError:
        return ()
    return tuple(dict.fromkeys(line for line in done.out.split() if line)) if done.code == 0 else ()


def profile_text(found: Found) -> str:
    """The profile as YAML, with other choices as comments. Every text from the scheduler is quoted."""
    chosen = _choose(found.partitions)
    lines = [
        "# A site profile made by `hpclm site init` from what the scheduler reported. Check it and change what",
        "# does not fit; every key is explained in launch/sites/example.yaml.",
        "scheduler: slurm",
        "",
        "# Partitions here:",
        *(f"#   {_describe(one)}" for one in found.partitions),
        f"partition: {_quoted(chosen.name)}",
        "",
    ]
    if found.accounts:
        lines += [f"# Your accounts: {_comment(', '.join(found.accounts))}", f"account: {_quoted(found.accounts[0])}"]
    else:
        lines.append("# account: NAME                   # the scheduler has no accounts, or does not show yours")
    runs = f"{found.scratch}/hpclm-runs" if found.scratch else None
    lines += [
        "",
        "# On a file system shared by all nodes, with space for checkpoints:",
        f"runs_dir: {_quoted(runs)}" if runs else "# runs_dir: /scratch/me/runs      # left out: ./runs",
        "",
    ]
    if chosen.gpus_per_node:
        gpus = f"{chosen.gpus_per_node} GPUs per node"
        lines += [f"# {gpus}; how jobs request them here: gpus-per-node, gres, or none (whole nodes):"]
        lines.append("gpu_request: gpus-per-node")
        lines += _gpu_type_lines(chosen)
        if chosen.cpus_per_node:
            share = max(1, chosen.cpus_per_node // chosen.gpus_per_node)
            lines.append(f"cpus_per_device: {share}                # {chosen.cpus_per_node} CPUs per node, divided")
    else:
        lines.append("gpu_request: none                  # no GPU in this partition")
    lines += ["", "container:"]
    if found.runtime == "none":
        lines.append("  runtime: none                    # found none of pyxis, enroot, apptainer, singularity here")
    else:
        lines.append(f"  runtime: {found.runtime}")
    lines += [
        '  # mounts: ["/datasets:/datasets:ro"]   # mounted in every container, besides the run',
        "  # images: /shared/images         # imported images, shared by all users of the folder",
        "  # pull: job                      # where the login node may not import them",
        "",
        "# environment: {NCCL_SOCKET_IFNAME: ib0}",
        "# modules: [cuda/12.4]",
        "",
    ]
    return "\n".join(lines)


def _gpu_type_lines(chosen: Partition) -> list[str]:
    """The type to request if the partition has several; else only its name as a comment."""
    types = sorted(chosen.gpu_types, key=lambda one: -one[1])
    if not types:
        return []
    names = _comment(", ".join(name for name, _ in types))
    if len(types) == 1:
        return [f"# gpu_type: {names}                 # the only type in this partition"]
    return [f"# Types here: {names}; left out, a job may get any of them:", f"gpu_type: {_quoted(types[0][0])}"]


def _choose(partitions: tuple[Partition, ...]) -> Partition:
    """The default partition, or if it has no GPU the largest that has; only partitions that are up, if any."""
    up = [one for one in partitions if one.up] or list(partitions)
    default = next((one for one in up if one.default), up[0])
    if default.gpus_per_node:
        return default
    return max((one for one in up if one.gpus_per_node), key=lambda one: one.nodes * one.gpus_per_node, default=default)


def _describe(one: Partition) -> str:
    parts = [f"{one.nodes} nodes"]
    if one.gpus_per_node:
        types = " + ".join(f"{count} {_comment(name)}" for name, count in one.gpu_types)
        parts.append(f"{types or one.gpus_per_node} GPUs each")
    if one.cpus_per_node:
        parts.append(f"{one.cpus_per_node} CPUs")
    if one.memory_mib_per_node:
        parts.append(f"{one.memory_mib_per_node / 1024:.0f} GiB")
    parts.append(f"{one.time_limit_min} min at most" if one.time_limit_min else "no time limit")
    marks = (" (the default)" if one.default else "") + ("" if one.up else " (not up)")
    return f"{_comment(one.name)}: {', '.join(parts)}{marks}"


def _quoted(text: str) -> str:
    """A YAML scalar for any text: JSON strings are valid YAML."""
    return json.dumps(text, ensure_ascii=True)


def _comment(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)
