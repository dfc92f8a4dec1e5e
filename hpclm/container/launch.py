"""From an image and its mounts to argv: Pyxis, Enroot, Singularity/Apptainer, or no container at all.

Nothing outside this room knows a container runtime's flags. Everything is argv; who puts it into a script quotes it.
Sources: pyxis README (`--container-*`), `enroot start --help`, Apptainer's `exec` reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from hpclm.errors import SiteError

_URI = re.compile(r"[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True)
class Mount:
    """A folder of the host seen at `target` inside."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class ContainerRequest:
    """What a recipe and a site together ask for.

    Attributes:
        environment: variables that must hold inside, whatever the image says of them.
        gpu: whether the ranks use GPUs.
    """

    image: str
    mounts: tuple[Mount, ...] = ()
    workdir: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    gpu: bool = True


@dataclass(frozen=True)
class LaunchSpec:
    """How a rank's command is wrapped.

    Attributes:
        environment: exported by the job before anything starts.
        srun_args: further arguments of srun.
        prefix: argv put in front of the rank's interpreter.
        python: argv of the interpreter where the profile names none.
    """

    environment: dict[str, str] = field(default_factory=dict)
    srun_args: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    python: tuple[str, ...] = ("python3",)


def launch_spec(runtime: str, request: ContainerRequest) -> LaunchSpec:
    """Render `request` for pyxis, enroot, singularity or apptainer. Raises SiteError for paths it cannot take."""
    for mount in request.mounts:
        for path in (mount.source, mount.target):
            if any(character in path for character in ",:") or not path.startswith("/"):
                raise SiteError(f"container mount {path!r}: must be absolute, without comma or colon")
    if runtime == "pyxis":
        return _pyxis(request)
    if runtime == "enroot":
        return _enroot(request)
    if runtime in ("singularity", "apptainer"):
        return _singularity(runtime, request)
    raise SiteError(f"container runtime {runtime!r}: choose pyxis, enroot, singularity, apptainer or none")


def _pyxis(request: ContainerRequest) -> LaunchSpec:
    mounts = ",".join(f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "") for mount in request.mounts)
    arguments = [f"--container-image={_registry_image(request.image)}", "--no-container-mount-home"]
    if mounts:
        arguments.append(f"--container-mounts={mounts}")
    if request.workdir:
        arguments.append(f"--container-workdir={request.workdir}")
    if request.environment:
        # The image's own value wins over the job's unless the variable is named here.
        arguments.append(f"--container-env={','.join(sorted(request.environment))}")
    return LaunchSpec(environment=dict(request.environment), srun_args=tuple(arguments))


def _enroot(request: ContainerRequest) -> LaunchSpec:
    # ENROOT_MOUNT_HOME=n: what lies in ~/.local must not shadow the image.
    prefix = ["enroot", "start", "--rw"]
    for mount in request.mounts:
        flags = ":none:bind,ro" if mount.read_only else ""
        prefix += ["--mount", f"{mount.source}:{mount.target}{flags}"]
    for name, value in sorted(request.environment.items()):
        prefix += ["--env", f"{name}={value}"]
    environment = {"ENROOT_MOUNT_HOME": "n"}
    if request.gpu:
        environment |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    image = _absolute_or_registry(request.image)
    inner: tuple[str, ...] = ()
    if request.workdir:
        inner = ("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", request.workdir)
    return LaunchSpec(environment=environment, prefix=(*prefix, image, *inner))


def _singularity(runtime: str, request: ContainerRequest) -> LaunchSpec:
    prefix = [runtime, "exec", *(["--nv"] if request.gpu else []), "--no-home"]
    for mount in request.mounts:
        prefix += ["--bind", f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")]
    # Prefixed variables reach the inside whatever the image says, and need no escaping as --env does.
    tool = "APPTAINERENV" if runtime == "apptainer" else "SINGULARITYENV"
    environment = {f"{tool}_{name}": value for name, value in request.environment.items()}
    if request.workdir:
        prefix += ["--pwd", request.workdir]
    image = request.image
    if not _is_path(image) and not _URI.match(image):
        image = f"docker://{image.replace('#', '/', 1)}"
    return LaunchSpec(environment=environment, prefix=(*prefix, image))


def _is_path(image: str) -> bool:
    return image.startswith(("/", "./", "../", "~"))


def _absolute_or_registry(image: str) -> str:
    if _is_path(image) and not PurePosixPath(image).is_absolute():
        raise SiteError(f"container image {image!r}: give an absolute path")
    return image


def _registry_image(image: str) -> str:
    """Enroot's spelling: `registry#image`. Before 4.0 `nvcr.io/nvidia/x` was looked for on Docker Hub."""
    if _is_path(image):
        return _absolute_or_registry(image)
    image = image.removeprefix("docker://")
    first, slash, rest = image.partition("/")
    if slash and "#" not in image and ("." in first or ":" in first):
        return f"{first}#{rest}"
    return image
