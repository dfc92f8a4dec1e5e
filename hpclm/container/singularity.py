"""Singularity CE and Apptainer. Source: the `exec` reference of both; the flags used here are the same.

The two are told apart by what `--version` says: Apptainer ships a program called `singularity`.
"""

from __future__ import annotations

import re

from hpclm.container.image import parse_image
from hpclm.container.launch import ContainerRequest, LaunchSpec


def render(runtime: str, request: ContainerRequest) -> LaunchSpec:
    """argv in front of the interpreter. The host's environment enters by itself, but an image's own value wins over it:
    what must hold is exported with the prefix that goes round that, and needs no escaping as `--env` does."""
    prefix = [runtime, "exec", *(["--nv"] if request.gpu else []), *([] if request.home else ["--no-home"])]
    if request.writable:
        prefix.append("--writable-tmpfs")
    for mount in request.mounts:
        prefix += ["--bind", f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")]
    environment = dict(request.environment)
    if request.gpu:
        # --nv appends the driver's libraries, behind a libcuda that an image may bring along.
        environment["PREPEND_LD_LIBRARY_PATH"] = "/.singularity.d/libs"
    if request.workdir:
        prefix += ["--pwd", request.workdir]
    tool = "APPTAINERENV" if runtime == "apptainer" else "SINGULARITYENV"
    outside = {f"{tool}_{name}": value for name, value in environment.items()}
    return LaunchSpec(environment=outside, prefix=(*prefix, parse_image(request.image).singularity))


def which(version_text: str) -> str | None:
    """`apptainer` or `singularity`, by the text of `--version`; None for something else."""
    if re.match(r"apptainer version \d", version_text):
        return "apptainer"
    return "singularity" if re.match(r"singularity(-ce|-pro)? version \d", version_text) else None
