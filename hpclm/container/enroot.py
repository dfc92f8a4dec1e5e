"""Enroot without Pyxis: every rank starts the image's file. Sources: `enroot start --help`, Enroot's src/runtime.sh.

Starting the .sqsh itself (squashfuse and fuse-overlayfs on the nodes) is chosen over one `enroot create` a node: the
latter unpacks tens of gigabytes onto every node before each start, and leaves them there.
"""

from __future__ import annotations

from hpclm.container.image import parse_image
from hpclm.container.launch import PASSED, ContainerRequest, LaunchSpec
from hpclm.errors import SiteError


def render(request: ContainerRequest) -> LaunchSpec:
    """argv in front of the interpreter. Nothing of the host's environment enters unless it is named."""
    image = parse_image(request.image)
    if image.path is None:
        raise SiteError(
            f"container image {request.image!r}: Enroot starts files; import it with `hpclm image pull`, or let a "
            "submit do so (container.pull in the site profile)"
        )
    environment = dict(request.environment)
    # Read by Enroot's own hooks, outside: the home's mount, and which GPUs with which of the driver's libraries.
    outside = {"ENROOT_MOUNT_HOME": "y" if request.home else "n"}
    if request.gpu:
        outside |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    prefix = ["enroot", "start", *(["--rw"] if request.writable else [])]
    for mount in request.mounts:
        options = "x-create=auto,rbind" + (",ro" if mount.read_only else "")
        prefix += ["--mount", f"{_fstab(mount.source)}:{_fstab(mount.target)}:none:{options}"]
    for name, value in sorted(environment.items()):
        prefix += ["--env", f"{name}={value}"]
    for name in PASSED:
        prefix += ["--env", name]  # without a value: the host's
    inner: tuple[str, ...] = ()
    if request.workdir:
        # Enroot has no option for it.
        inner = ("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", request.workdir)
    return LaunchSpec(environment=outside, prefix=(*prefix, image.path, *inner))


def _fstab(path: str) -> str:
    """A path as a field of fstab(5), where white space and backslashes are written as octal numbers."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
