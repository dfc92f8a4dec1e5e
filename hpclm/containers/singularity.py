"""Singularity CE and Apptainer. Source: the `exec` reference of both; the flags used here are the same.

The two are distinguished by what `--version` says: Apptainer ships a program called `singularity`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hpclm.containers import image_environment
from hpclm.containers.image import Image, parse_image
from hpclm.containers.launch import ContainerRequest, LaunchSpec, Mount, Probe
from hpclm.containers.runtime import Runtime


def render(program: str, request: ContainerRequest) -> LaunchSpec:
    """argv in front of the interpreter. The host's environment enters by itself, but an image's own value wins over it:
    what must be set is set by a shell inside (see `inside`)."""
    prefix = [program, "exec", *(["--nv"] if request.gpu else []), *([] if request.home else ["--no-home"])]
    if request.writable:
        prefix.append("--writable-tmpfs")
    for mount in request.mounts:
        prefix += _bind(mount)
    if request.workdir:
        prefix += ["--pwd", request.workdir]
    tool = program.upper()
    # Set in a user's shell, this would hide from a rank the variables that tell it its place.
    outside = {f"{tool}_CLEANENV": "false", **image_environment.carried(request.environment)}
    if request.gpu:
        # --nv appends the driver's libraries, after a libcuda that an image may contain.
        outside[f"{tool}ENV_PREPEND_LD_LIBRARY_PATH"] = "/.singularity.d/libs"
    image = parse_image(request.image).singularity
    return LaunchSpec(environment=outside, prefix=(*prefix, image, *image_environment.entry(request.environment)))


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


def _is_here(program: str, probe: Probe) -> bool:
    """Apptainer ships a program called singularity, which counts as Apptainer if nothing else is installed."""
    said = {name: which(probe([name, "--version"]) or "") for name in ("apptainer", "singularity")}
    return program in said.values()


def _import_argv(program: str, image: Image, to: Path) -> list[str]:
    """The command that creates the .sif file `to`, which must not exist."""
    return [program, "pull", str(to), image.singularity]


def _credentials(program: str, registry: str, variables: Mapping[str, str] = os.environ) -> str:
    """Where the program looks for a registry's credentials, and whether they exist. Only reads."""
    name = program.upper()
    held = "is set" if variables.get(f"{name}_DOCKER_USERNAME") else "is not set"
    return (
        f"{registry} needs credentials: export {name}_DOCKER_USERNAME ({held}; for NGC: $oauthtoken, quoted) and "
        f"{name}_DOCKER_PASSWORD, or log in once with `{program} registry login docker://{registry}`"
    )


def _runtime(program: str, rank: int) -> Runtime:
    return Runtime(
        name=program,
        render=partial(render, program),
        is_here=partial(_is_here, program),
        rank=rank,
        program=program,
        suffix=".sif",
        import_argv=partial(_import_argv, program),
        credentials=partial(_credentials, program),
    )


APPTAINER = _runtime("apptainer", 3)
SINGULARITY = _runtime("singularity", 4)
