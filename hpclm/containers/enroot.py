"""Enroot without Pyxis: every rank starts the image's file. Sources: `enroot start --help`, Enroot's src/runtime.sh.

Starting the .sqsh itself (squashfuse and fuse-overlayfs on the nodes) is chosen over one `enroot create` a node: the
latter unpacks tens of gigabytes onto every node before each start, and leaves them there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hpclm.containers import image_environment
from hpclm.containers.image import Image, squashed
from hpclm.containers.launch import ContainerRequest, LaunchSpec, hook_variables, refuse_in_mounts
from hpclm.containers.runtime import Runtime
from hpclm.core.errors import SiteError


def render(request: ContainerRequest) -> LaunchSpec:
    """argv in front of the interpreter. No variable of the host's environment is passed unless it is named."""
    refuse_in_mounts(request, ",:", "enroot splits paths at it")
    image = squashed(request.image, "enroot")
    if image.path is None:
        raise SiteError(
            f"container image {request.image!r}: Enroot needs an image file; import it with `hpclm image pull`, or let "
            "a submit import it (container.pull in the site profile)"
        )
    hooks = hook_variables(request)
    inside = {name: value for name, value in request.environment.items() if name not in hooks}
    carried = image_environment.carried(inside)
    # Read by Enroot and its hooks outside the container; set in a user's shell, they
    # would change the container unnoticed.
    outside = {
        "ENROOT_MOUNT_HOME": "y" if request.home else "n",
        "ENROOT_ROOTFS_WRITABLE": "y" if request.writable else "n",
        # A login shell would read the profiles of the user and of the image, and change PATH and the interpreter.
        "ENROOT_LOGIN_SHELL": "n",
        **hooks,
    }
    prefix = ["enroot", "start", *(["--rw"] if request.writable else [])]
    for mount in request.mounts:
        options = "x-create=auto,rbind" + (",ro" if mount.read_only else "")
        prefix += ["--mount", f"{fstab(mount.source)}:{fstab(mount.target)}:none:{options}"]
    for name in (*hooks, *carried, *request.passed_names):
        prefix += ["--env", name]  # without a value: the host's, which then shows in no list of processes
    # An unset variable comes out empty: no CUDA_VISIBLE_DEVICES means every GPU, an empty one means none.
    entry = image_environment.entry(inside, workdir=request.workdir, drop_if_empty=request.passed_names)
    return LaunchSpec(environment=outside | carried, prefix=(*prefix, image.path, *entry))


def fstab(path: str) -> str:
    """A path as a field of fstab(5), where white space and backslashes are written as octal numbers."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def import_argv(image: Image, to: Path) -> list[str]:
    """The command that creates the .sqsh file `to`, which must not exist."""
    return ["enroot", "import", "--output", str(to), image.enroot]


def credentials(registry: str, variables: Mapping[str, str] = os.environ) -> str:
    """Where Enroot looks for a registry's credentials, and whether they exist. Only reads."""
    folder = variables.get("ENROOT_CONFIG_PATH") or Path(variables.get("XDG_CONFIG_HOME", "~/.config"), "enroot")
    file = Path(folder).expanduser() / ".credentials"
    try:
        held = (
            "has" if re.search(rf"^\s*machine\s+{re.escape(registry)}\s", file.read_text(), re.MULTILINE) else "lacks"
        )
    except OSError:
        held = "does not exist and needs"
    also = " and one for authn.nvidia.com" if registry == "nvcr.io" else ""
    return (
        f"{registry} needs credentials: {file} {held} a line `machine {registry} login NAME password KEY`{also} "
        "(for NGC the name is $oauthtoken); add it yourself and make the file private (chmod 600)"
    )


RUNTIME = Runtime(
    name="enroot",
    render=render,
    is_here=lambda probe: shutil.which("enroot") is not None,
    rank=2,
    program="enroot",
    suffix=".sqsh",
    import_argv=import_argv,
    credentials=credentials,
)
