"""What the stand-ins for container runtimes share: an image as a small file, and a root of its own by bubblewrap.

An image here holds the Python that runs the tests with all it has installed, and nothing of this checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

# The image has opinions of its own, as real ones do.
IMAGE_ENVIRONMENT = {"PYTHONPATH": "/opt/image/own", "OMP_NUM_THREADS": "99", "LANG": "C.UTF-8"}


def fail(program: str, message: str) -> None:
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(1)


def write_image(path: str, source: str) -> None:
    if Path(path).exists():
        fail("import", f"File already exists: {path}")
    Path(path).write_text(
        json.dumps({"source": source, "prefixes": list(dict.fromkeys([sys.prefix, sys.base_prefix]))})
    )


def read_image(program: str, path: str) -> dict[str, Any]:
    try:
        image: dict[str, Any] = json.loads(Path(path).read_text())
        return image
    except (OSError, ValueError):
        fail(program, f"no such image: {path}")
        raise


def enter(
    image: dict[str, Any],
    binds: list[tuple[str, str, bool]],
    environment: dict[str, str],
    workdir: str,
    command: list[str],
) -> None:
    """Become `command` in a root that has the image's files and the binds (source, target, read-only), no more."""
    if shutil.which("bwrap") is None:
        fail("sandbox", "bubblewrap (bwrap) is missing; on Debian or Ubuntu: apt-get install bubblewrap")
    argv = ["bwrap", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc", "--proc", "/proc", "--dev", "/dev"]
    for name in ("bin", "sbin", "lib", "lib64"):
        argv += ["--symlink", f"usr/{name}", f"/{name}"]
    argv += ["--tmpfs", "/tmp", "--dev-bind", "/dev/shm", "/dev/shm"]
    for prefix in image["prefixes"]:
        argv += ["--ro-bind", prefix, prefix]
    for source, target, read_only in binds:
        argv += ["--ro-bind" if read_only else "--bind", source, target]
    argv += ["--chdir", workdir, "--clearenv"]
    path = f"{image['prefixes'][0]}/bin:{image['prefixes'][-1]}/bin:/usr/bin:/bin"
    for name, value in {"PATH": path, **environment}.items():
        argv += ["--setenv", name, value]
    for number in (signal.SIGTERM, signal.SIGUSR2):
        # The real runtimes become the command; bwrap stays its parent, and must not die of what is meant for it.
        signal.signal(number, signal.SIG_IGN)
    os.execvp("bwrap", [*argv, "--", *command])
