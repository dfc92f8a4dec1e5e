"""A stand-in for Enroot: its real options and their checks (src/runtime.sh), `start` under bubblewrap."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sandbox import IMAGE_ENVIRONMENT, enter, fail, read_image, write_image  # type: ignore[import-not-found]

_URI = re.compile(r"docker://([^@/#:]+@)?([a-z0-9.-]+(:[0-9]+)?#)?[a-z0-9._/-]+([:@][A-Za-z0-9._:-]+)?")
_MOUNT = re.compile(r"\S+:\S+")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(=.*|$)", re.DOTALL)


def import_(arguments: list[str]) -> None:
    if arguments[:1] != ["--output"] or len(arguments) != 3:
        fail("enroot", f"Usage: enroot import [options] [--] URI, got {arguments}")
    _, target, uri = arguments
    if not _URI.fullmatch(uri):
        fail("[ERROR]", f"Invalid image reference: {uri}")
    if sys.stdin.read():
        fail("[ERROR]", "asked for a password")
    if "private.example" in uri:
        print("[INFO] Querying registry for permission grant")
        fail("[ERROR]", "URL https://private.example/v2/ returned error code: 401 Unauthorized")
    print("[INFO] Fetching image layers", flush=True)
    if os.environ.get("STANDIN_DIES"):
        Path(target).write_text("half")
        os.kill(os.getpid(), 9)
    if os.environ.get("STANDIN_HANGS"):
        # As the real one: a child of its shell does the work.
        code = f"import time; open({target!r}, 'w').write('half'); print('[INFO] half', flush=True); time.sleep(99)"
        subprocess.run([sys.executable, "-c", code], check=False)
    write_image(target, uri)


def start(arguments: list[str]) -> None:
    mounts, names = [], []
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option in ("-m", "--mount"):
            mounts.append(arguments.pop(0))
        elif option in ("-e", "--env"):
            names.append(arguments.pop(0))
        elif option not in ("-w", "--rw", "-r", "--root", "--"):
            fail("[ERROR]", f"Invalid option: {option}")
    image = read_image("[ERROR]", arguments.pop(0))
    for mount in mounts:
        if not _MOUNT.fullmatch(mount):
            fail("[ERROR]", f"Invalid argument: {mount}")
    for name in names:
        if not _ENV.fullmatch(name):
            fail("[ERROR]", f"Invalid argument: {name}")
    # A name without a value takes the host's, and is empty where that is not set; quotes around a value come off.
    lines = [name if "=" in name else f"{name}={os.environ.get(name, '')}" for name in names]
    lines = [line for line in lines if not line.startswith("ENROOT_")]
    given = dict(re.sub(r"""^(\w+)=["'](.*)["']\s*$""", r"\1=\2", line).split("=", 1) for line in lines)
    binds = []
    for mount in mounts:
        # a line of fstab, its fields parted by colons
        source, target, *rest = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), part) for part in mount.split(":"))
        kind, options = [*rest, "none", "x-create=auto,bind"][:2]
        if kind != "none" or "x-create=auto" not in options:
            fail("enroot-mount", f"failed to mount: {target}: no such file or directory")
        binds.append((source, target, "ro" in options.split(",")))
    enter(image, binds, {**IMAGE_ENVIRONMENT, **given}, "/", arguments)


if __name__ == "__main__":
    {"import": import_, "start": start}[sys.argv[1]](sys.argv[2:])
