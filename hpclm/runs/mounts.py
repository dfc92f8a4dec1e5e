"""What is mounted in a stage's container, and which inputs are not."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hpclm.containers import Mount
from hpclm.core.site import Site

if TYPE_CHECKING:
    from hpclm.planning import StagePlan


def mounts_of(stage: StagePlan, site: Site, root: Path, payload: Path) -> tuple[Mount, ...]:
    """The run's folder, its code, the recipe's and the site's; deeper targets come
    later, since a folder mounted over them would hide them."""
    assert stage.container is not None
    own = [root] if payload.is_relative_to(root) else [root, payload]
    mounts = [Mount(str(path), str(path)) for path in own]
    mounts += [Mount(mount.source, mount.target, mount.read_only) for mount in stage.container.mounts]
    for text in site.container.mounts:
        source, target, *flags = text.split(":")
        mounts.append(Mount(source, target, flags == ["ro"]))
    return tuple(sorted(mounts, key=lambda mount: len(PurePosixPath(mount.target).parts)))


def mount_notes(stage: StagePlan, site: Site, root: Path, home: Path) -> list[str]:
    """Mounts that will probably fail on a node, as seen from this machine: these are
    warnings, since it is not the node."""
    if stage.container is None:
        return []
    mounts = [mount for mount in mounts_of(stage, site, root, root) if mount.source != str(root)]
    notes = [
        f"stage {stage.name}: {mount.source} is to be mounted but does not exist on this machine; if a node lacks it "
        "too, no rank starts"
        for mount in mounts
        if not os.path.lexists(mount.source)
    ]
    seen = [root, *(Path(mount.target) for mount in mounts)]
    if site.container.home if stage.container.home is None else stage.container.home:
        seen.append(home)
    notes += [
        f"stage {stage.name}: {path} is not in a mounted folder; add it to container.mounts of the recipe or the "
        "site, unless the container runtime mounts it automatically"
        for path in dict.fromkeys(stage.spec.needs.inputs if stage.spec else [])
        if not any(Path(path).is_relative_to(folder) for folder in seen)
    ]
    return notes
