"""Stand-ins for the container runtimes as programs of their own."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

STANDINS = Path(__file__).with_name("container_standins")


def install(folder: Path, *names: str) -> None:
    """Make the programs `names` in `folder`."""
    folder.mkdir(exist_ok=True)
    for name in names:
        script = STANDINS / ("enroot.py" if name == "enroot" else "singularity.py")
        words = shlex.join([sys.executable, str(script)])
        (folder / name).write_text(f'#!/bin/sh\nSTANDIN_NAME={name} exec {words} "$@"\n')
        (folder / name).chmod(0o755)
