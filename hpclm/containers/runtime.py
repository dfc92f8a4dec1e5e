"""What a container runtime is to hpclm, and which ones there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.containers.image import Image
from hpclm.containers.launch import ContainerRequest, LaunchSpec
from hpclm.core.registries import RUNTIMES

# Runs a command and returns what it printed, or None where it is not there or fails.
Probe = Callable[[list[str]], str | None]


@dataclass(frozen=True)
class Runtime:
    """One way to enter an image.

    To add one: an object of this class, and an entry `name = "module:OBJECT"` in the group `hpclm.runtimes`.

    Attributes:
        render: from a request to argv and environment. Raises SiteError for paths it cannot take.
        program: what must be on a node's PATH; None for one that is a part of the scheduler.
        suffix: of an imported image's file; None where images are not imported.
        imports_with: the program that imports images, where it is another.
        import_argv: the command that imports an image to a file.
        imports_itself: whether the job imports the image where nobody has before.
        is_here: whether this machine has it.
        credentials: where it looks for a registry's credentials, and whether anything is there.
        rank: of several that are here, the one with the lowest number is taken.
    """

    name: str
    render: Callable[[ContainerRequest], LaunchSpec]
    is_here: Callable[[Probe], bool]
    rank: int
    program: str | None = None
    suffix: str | None = None
    imports_with: str | None = None
    import_argv: Callable[[Image, Path], list[str]] | None = None
    imports_itself: bool = False
    credentials: Callable[[str, Mapping[str, str]], str] | None = None


def runtime(name: str) -> Runtime:
    """The runtime of that name. Raises UnknownNameError."""
    found: Any = RUNTIMES.get(name)
    assert isinstance(found, Runtime)
    return found


def runtime_here(probe: Probe) -> str:
    """The name of this machine's container runtime, `none` where it has none."""
    known = sorted((one for _, one in RUNTIMES.items()), key=lambda one: one.rank)
    return next((one.name for one in known if one.is_here(probe)), "none")


def launch_spec(name: str, request: ContainerRequest) -> LaunchSpec:
    """`request` as the runtime `name` takes it. Raises SiteError for paths it cannot take."""
    request.check()
    return runtime(name).render(request)
