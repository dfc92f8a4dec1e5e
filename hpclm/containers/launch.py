"""From an image and its mounts to argv: the request and the launch specification.

Nothing outside this package knows a container runtime's flags. Everything is argv;
whoever puts it into a script quotes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hpclm.core.errors import SiteError

# Runs a command and returns what it printed, or None if it does not exist or fails.
Probe = Callable[[list[str]], str | None]

# Variables that tell a rank its place and differ between ranks: they must have the same value inside the container.
PASSED = (
    "CUDA_VISIBLE_DEVICES",
    "HPCLM_LOCAL_RANK",
    "HPCLM_NODE_RANK",
    "HPCLM_RANK",
    "HPCLM_RANK_VARIABLES",
    "HPCLM_RESTART",
    "HPCLM_WORLD_SIZE",
)


@dataclass(frozen=True)
class Mount:
    """A folder of the host, mounted at `target` in the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class ContainerRequest:
    """What the recipe and the site request together.

    Attributes:
        image: as the user wrote it (see `image.parse_image`), or the path of an imported copy.
        environment: variables that must be set inside, overriding the image's own.
        passed: names of the scheduler's variables that a rank reads; they change from rank to rank.
        secrets: names of variables that the job sets and no argument contains.
        gpu: whether the ranks use GPUs.
        writable: whether the ranks may write into the image's own folders; what they write is lost.
        home: whether the user's home is mounted. Packages in ~/.local must not shadow the image's.
        probe: asks this machine's runtime what it can do; a runtime asks only where its versions differ.
    """

    image: str
    mounts: tuple[Mount, ...] = ()
    workdir: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    gpu: bool = True
    writable: bool = False
    home: bool = False
    passed: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    probe: Probe = lambda argv: None

    @property
    def passed_names(self) -> tuple[str, ...]:
        """Every variable whose value differs from rank to rank or from job to job."""
        return tuple(sorted({*PASSED, *self.passed, *self.secrets}))

    def check(self) -> None:
        """Raises SiteError for a mount that is not absolute."""
        for mount in self.mounts:
            for path in (mount.source, mount.target):
                if not path.startswith("/"):
                    raise SiteError(f"container mount {path!r}: must be absolute")


# Variables that Enroot's hooks read before anything runs inside, also when Pyxis starts Enroot.
_OF_HOOKS = ("NVIDIA_", "MELLANOX_")


def hook_variables(request: ContainerRequest) -> dict[str, str]:
    """What the hooks are told: which GPUs to mount, and what the recipe says.

    For a stage on the CPU none: an image that asks for GPUs would not start on a node without.
    """
    devices = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    own = {name: value for name, value in request.environment.items() if name.startswith(_OF_HOOKS)}
    return (devices if request.gpu else {"NVIDIA_VISIBLE_DEVICES": "void"}) | own


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


def refuse_in_mounts(request: ContainerRequest, characters: str, why: str) -> None:
    """Raises SiteError for a mounted path that contains one of `characters`."""
    for mount in request.mounts:
        for path in (mount.source, mount.target):
            bad = next((character for character in path if character in characters), None)
            if bad is not None:
                raise SiteError(
                    f"container mount {path!r}: contains {bad!r}, and {why}; rename it or use a symbolic link"
                )
