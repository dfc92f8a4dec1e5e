"""What a run was started with: versions, code, machine, command line. Never the process environment: it has secrets."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hpclm.core.processes import user_name
from hpclm.core.secrets import masked

_PACKAGES = (
    "hpclm",
    "pydantic",
    "pyyaml",
    "rich",
    "submitit",
    "cloudpickle",
    "typer",
    "torch",
    "megatron-core",
    "numpy",
    "safetensors",
    "tokenizers",
    "transformer-engine",
    "deepspeed",
)
_GIT_S = 5.0


def capture(recipe: Path) -> dict[str, Any]:
    """The facts, JSON-ready. Packages are those of the login side; an image has its own."""
    return {
        "captured_at": time.time(),
        "command": masked(shlex.join(sys.argv)),
        "user": user_name(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "interpreter": sys.executable,
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": {"recipe": git_state(recipe.parent), "hpclm": git_state(Path(__file__).parent)},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether anything is uncommitted, None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "dirty": None if changed is None else bool(changed.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
