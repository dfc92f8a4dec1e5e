"""Enroot without Pyxis: every rank starts the image's file. Sources: `enroot start --help`, Enroot's src/runtime.sh.

Starting the .sqsh itself (squashfuse and fuse-overlayfs on the nodes) is chosen over one `enroot create` a node: the
latter unpacks tens of gigabytes onto every node before each start, and leaves them there.
"""

from __future__ import annotations

from hpclm.containers import environment
from hpclm.containers.image import squashed
from hpclm.containers.launch import PASSED, ContainerRequest, LaunchSpec, refuse_in_mounts
from hpclm.core.errors import SiteError


def render(request: ContainerRequest) -> LaunchSpec:
    """argv in front of the interpreter. Nothing of the host's environment enters unless it is named."""
    refuse_in_mounts(request, ",:", "enroot splits there")
    image = squashed(request.image, "enroot")
    if image.path is None:
        raise SiteError(
            f"container image {request.image!r}: Enroot starts files; import it with `hpclm image pull`, or let a "
            "submit do so (container.pull in the site profile)"
        )
    carried = environment.carried(request.environment)
    # Read by Enroot and its hooks, outside; what a user's shell has of these would change the container unseen.
    outside = {
        "ENROOT_MOUNT_HOME": "y" if request.home else "n",
        "ENROOT_ROOTFS_WRITABLE": "y" if request.writable else "n",
    }
    if request.gpu:
        outside |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    prefix = ["enroot", "start", *(["--rw"] if request.writable else [])]
    for mount in request.mounts:
        options = "x-create=auto,rbind" + (",ro" if mount.read_only else "")
        prefix += ["--mount", f"{fstab(mount.source)}:{fstab(mount.target)}:none:{options}"]
    for name in (*carried, *PASSED):
        prefix += ["--env", name]  # without a value: the host's, which then shows in no list of processes
    # An unset variable comes out empty: no CUDA_VISIBLE_DEVICES means every GPU, an empty one means none.
    entry = environment.entry(request.environment, workdir=request.workdir, drop_if_empty=PASSED)
    return LaunchSpec(environment=outside | carried, prefix=(*prefix, image.path, *entry))


def fstab(path: str) -> str:
    """A path as a field of fstab(5), where white space and backslashes are written as octal numbers."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
