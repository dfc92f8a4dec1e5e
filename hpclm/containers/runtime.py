"""The interface of a container runtime, and the known ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpclm.containers.image import Image
from hpclm.containers.launch import ContainerRequest, LaunchSpec, Probe
from hpclm.core.registries import RUNTIMES


@dataclass(frozen=True)
class Runtime:
    """One way to run a command in a container.

    To add one: an object of this class, and an entry `name = "module:OBJECT"` in the group `hpclm.runtimes`.

    Attributes:
        render: from a request to argv and environment. Raises SiteError for paths it cannot take.
        program: the program that must be on a node's PATH; None for one that is part of the scheduler.
        suffix: of an imported image's file; None where images are not imported.
        imports_with: the program that imports images, if it is a different one.
        import_argv: the command that imports an image to a file.
        imports_itself: whether the job imports a missing image by itself.
        is_here: whether this machine has it.
        credentials: where it looks for a registry's credentials, and whether they exist.
        rank: if several are installed, the one with the lowest number is used.
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
    return RUNTIMES.get(name)


def runtime_here(probe: Probe) -> str:
    """The name of this machine's container runtime, `none` if there is none."""
    known = sorted((one for _, one in RUNTIMES.items()), key=lambda one: one.rank)
    return next((one.name for one in known if one.is_here(probe)), "none")


def launch_spec(name: str, request: ContainerRequest) -> LaunchSpec:
    """`request` as the runtime `name` takes it. Raises SiteError for paths it cannot take."""
    request.check()
    return runtime(name).render(request)
