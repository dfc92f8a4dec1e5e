"""A site: the facts about a machine or cluster, which do not belong in recipes. Read by `recipe.site_profile`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hpclm.core.secrets import Secret

NO_RUNTIME = "none"


@dataclass(frozen=True)
class SiteContainer:
    """How commands run in containers at this site.

    Attributes:
        mounts: what every container of this site has mounted (`SOURCE:TARGET[:ro]`).
        images: folder for imported images, shared by all nodes; None: `images` next to the runs.
        pull: where an image is imported: on this `login` node, in a separate `job`, or `never` by hpclm.
        home: whether the user's home is mounted.
    """

    runtime: str = NO_RUNTIME
    mounts: tuple[str, ...] = ()
    images: str | None = None
    pull: Literal["login", "job", "never"] = "login"
    home: bool = False


@dataclass(frozen=True)
class Site:
    """One place to run.

    Attributes:
        python: argv of the interpreter that runs a rank; empty: this one, or `python3` inside a container.
        gpu_request: how GPUs are requested from this scheduler: `--gpus-per-node`, `--gres`, or not at all.
        gpu_type: the type's name in the request (`a100`), None for any.
        cpus_per_device: CPUs per rank where the recipe sets none; None: 1.
        exclusive: whether to request whole nodes.
        secrets: variables whose values are read where a job runs, and written nowhere.
        sbatch: further long options of sbatch and their values (`true` for a flag).
        origin: where the profile comes from, for messages.
    """

    name: str
    scheduler: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    runs_dir: str | None = None
    python: tuple[str, ...] = ()
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    gpu_type: str | None = None
    cpus_per_device: int | None = None
    exclusive: bool = False
    container: SiteContainer = field(default_factory=SiteContainer)
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, Secret] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    sbatch: dict[str, str | bool] = field(default_factory=dict)
    origin: str = "built in"

    def with_runtime(self, find: Callable[[], str]) -> Site:
        """The site with the container runtime that `find` finds, where the profile names none."""
        if self.container.runtime != NO_RUNTIME:
            return self
        return dataclasses.replace(self, container=dataclasses.replace(self.container, runtime=find()))


LOCAL = Site(name="local", scheduler="local")
