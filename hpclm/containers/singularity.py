"""Singularity CE and Apptainer. Source: the `exec` reference of both; the flags used here are the same.

The two are told apart by what `--version` says: Apptainer ships a program called `singularity`.
"""

from __future__ import annotations

import re

from hpclm.containers import environment
from hpclm.containers.image import parse_image
from hpclm.containers.launch import ContainerRequest, LaunchSpec, Mount


def render(runtime: str, request: ContainerRequest) -> LaunchSpec:
    """argv in front of the interpreter. The host's environment enters by itself, but an image's own value wins over it:
    what must hold is set by a shell inside (see `inside`)."""
    prefix = [runtime, "exec", *(["--nv"] if request.gpu else []), *([] if request.home else ["--no-home"])]
    if request.writable:
        prefix.append("--writable-tmpfs")
    for mount in request.mounts:
        prefix += _bind(mount)
    if request.workdir:
        prefix += ["--pwd", request.workdir]
    tool = runtime.upper()
    # Set in a user's shell, this would keep from a rank all that tells it its place.
    outside = {f"{tool}_CLEANENV": "false", **environment.carried(request.environment)}
    if request.gpu:
        # --nv appends the driver's libraries, behind a libcuda that an image may bring along.
        outside[f"{tool}ENV_PREPEND_LD_LIBRARY_PATH"] = "/.singularity.d/libs"
    image = parse_image(request.image).singularity
    return LaunchSpec(environment=outside, prefix=(*prefix, image, *environment.entry(request.environment)))


def _bind(mount: Mount) -> list[str]:
    if not any(character in mount.source + mount.target for character in ',:"\\'):
        return ["--bind", f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")]
    # --bind splits there; --mount (Singularity CE 3.9, Apptainer 1.0) takes a line of CSV.
    fields = ["type=bind", f"source={mount.source}", f"destination={mount.target}", *(["ro"] * mount.read_only)]
    return ["--mount", ",".join('"' + field.replace('"', '""') + '"' for field in fields)]


def which(version_text: str) -> str | None:
    """`apptainer` or `singularity`, by the text of `--version`; None for something else."""
    if re.match(r"apptainer version \d", version_text):
        return "apptainer"
    return "singularity" if re.match(r"singularity(-ce|-pro)? version \d", version_text) else None
