"""A stand-in for Apptainer and Singularity CE: their real options, `exec` under bubblewrap."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

from sandbox import IMAGE_ENVIRONMENT, enter, fail, read_image, write_image  # type: ignore[import-not-found]

_PLAIN = ("--nv", "--no-home", "--writable-tmpfs")


def pull(program: str, arguments: list[str]) -> None:
    target, uri = arguments
    if not re.fullmatch(r"docker://[a-z0-9.-]+(:[0-9]+)?/[a-z0-9._/-]+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]+)?", uri):
        fail("FATAL", f"While making image from oci registry: invalid reference format: {uri}")
    if "private.example" in uri:
        fail("FATAL", "while pulling: reading manifest: unauthorized: authentication required")
    write_image(target, uri)


def shell(value: str) -> str:
    """The value as the real ones set it: between double quotes in a script, so that what is in it is executed."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return subprocess.run(["bash", "-c", f'printf %s "{quoted}"'], capture_output=True, text=True, check=True).stdout


def exec_(program: str, arguments: list[str]) -> None:
    binds, workdir, home = [], str(Path.cwd()), True
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option == "--bind":
            source, target, *options = arguments.pop(0).split(":")
            binds.append((source, target, options == ["ro"]))
        elif option == "--mount":
            (fields,) = csv.reader([arguments.pop(0)])
            mount = dict(field.partition("=")[::2] for field in fields)
            if mount.pop("type") != "bind" or set(mount) - {"source", "destination", "ro"}:
                fail("FATAL", f"while parsing mounts: {fields}")
            binds.append((mount["source"], mount["destination"], "ro" in mount))
        elif option == "--pwd":
            workdir = arguments.pop(0)
        elif option in _PLAIN:
            home = home and option != "--no-home"
        else:
            fail("Error", f"unknown flag: {option}")
    image = read_image("FATAL", arguments.pop(0))
    prefix = "APPTAINERENV_" if program == "apptainer" else "SINGULARITYENV_"
    forced = {name.removeprefix(prefix): shell(value) for name, value in os.environ.items() if name.startswith(prefix)}
    clean = os.environ.get(prefix.replace("ENV_", "_CLEANENV"), "false") not in ("false", "0")
    names = [] if clean else [name for name in os.environ if not name.startswith(prefix) and name != "PATH"]
    host = {name: os.environ[name] for name in names}
    if home:
        binds.insert(0, (str(Path.home()), str(Path.home()), False))
    enter(image, binds, {**host, **IMAGE_ENVIRONMENT, **forced}, workdir, arguments)


if __name__ == "__main__":
    program = os.environ["STANDIN_NAME"]
    if sys.argv[1] == "--version":
        print("apptainer version 1.3.4" if program == "apptainer" else "singularity-ce version 4.1.5")
    else:
        {"pull": pull, "exec": exec_}[sys.argv[1]](program, sys.argv[2:])
