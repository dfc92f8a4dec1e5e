"""The capabilities of a site: its profile, and what its scheduler offers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from hpclm.core.site import Site
from hpclm.schedulers.jobs import StageJob


@dataclass(frozen=True)
class Partition:
    """One partition (queue) of a cluster; None is unknown or unlimited.

    Attributes:
        gpu_types: the types its GPUs are configured with, each with the most a node has; empty where they have none.
    """

    name: str
    default: bool
    up: bool
    nodes: int
    cpus_per_node: int | None
    memory_mib_per_node: int | None
    gpus_per_node: int
    time_limit_min: int | None
    gpu_types: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class SiteCapabilities:
    """A site with what was found about it.

    Attributes:
        partition: where jobs will run; None if there are none, or no scheduler could be queried.
        trouble: why it could not be queried.
    """

    site: Site
    partition: Partition | None = None
    trouble: str | None = None

    def spares(self, nodes: int, wanted: int) -> bool:
        """Whether `wanted` nodes are left when `nodes` of them are left out."""
        return self.partition is not None and self.partition.nodes - nodes >= wanted


def missing_packages(jobs: Iterable[StageJob]) -> list[str]:
    """Packages that ranks need and this interpreter, if it will run them, does not have. Checks without importing."""
    own = [job for job in jobs if job.python == (sys.executable,) and not job.in_container]
    needed = dict.fromkeys(name for job in own for name in job.packages)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [
        f"{sys.executable}, which will run the ranks, has no {', '.join(missing)}; install 'hpclm[engine]' there, "
        "set another interpreter as `python` in the site profile, or an image as container.image in the recipe"
    ]
