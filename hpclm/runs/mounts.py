"""What a stage's container sees of the host, and what it will miss."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hpclm.containers import Mount
from hpclm.core.site import Site

if TYPE_CHECKING:
    from hpclm.planning import StagePlan


def mounts_of(stage: StagePlan, site: Site, root: Path, payload: Path) -> tuple[Mount, ...]:
    """The run's folder, its code, the recipe's and the site's; the deeper later, or a folder mounted over it would hide
    it."""
    assert stage.container is not None
    own = [root] if payload.is_relative_to(root) else [root, payload]
    mounts = [Mount(str(path), str(path)) for path in own]
    mounts += [Mount(mount.source, mount.target, mount.read_only) for mount in stage.container.mounts]
    for text in site.container.mounts:
        source, target, *flags = text.split(":")
        mounts.append(Mount(source, target, flags == ["ro"]))
    return tuple(sorted(mounts, key=lambda mount: len(PurePosixPath(mount.target).parts)))


def mount_notes(stage: StagePlan, site: Site, root: Path, home: Path) -> list[str]:
    """What this machine can tell of mounts that will fail on a node: it is not the node, so these are no refusals."""
    if stage.container is None:
        return []
    mounts = [mount for mount in mounts_of(stage, site, root, root) if mount.source != str(root)]
    notes = [
        f"stage {stage.name}: {mount.source} is to be mounted and is not on this machine; where a node lacks it, too, "
        "no rank starts"
        for mount in mounts
        if not os.path.lexists(mount.source)
    ]
    seen = [root, *(Path(mount.target) for mount in mounts)]
    if site.container.home if stage.container.home is None else stage.container.home:
        seen.append(home)
    notes += [
        f"stage {stage.name}: {path} is in no folder that is mounted; add it to container.mounts of the recipe or the "
        "site, unless the container runtime mounts it by itself"
        for path in dict.fromkeys(stage.spec.needs.inputs if stage.spec else [])
        if not any(Path(path).is_relative_to(folder) for folder in seen)
    ]
    return notes
