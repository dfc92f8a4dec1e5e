"""The site profile: facts of a machine or cluster, so that recipes carry none of them.

    name: mycluster
    scheduler: slurm                # or local
    partition: gpu
    account: project-42
    runs_dir: /scratch/me/runs
    python: /opt/env/bin/python     # what runs a rank; inside a container: python3
    container:
      runtime: pyxis                # none, pyxis, enroot, singularity or apptainer
      mounts: ["/scratch:/scratch"]
    environment: {NCCL_SOCKET_IFNAME: ib0}
    modules: [cuda/12.4]
    sbatch: {reservation: course}   # further options of sbatch, by their long names

Values never become shell: every one is checked here and quoted where it is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpclm.core.errors import SiteError
from hpclm.core.shipped import launch_folder

Runtime = Literal["none", "pyxis", "enroot", "singularity", "apptainer"]

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_WORD = re.compile(r"[A-Za-z0-9._:@/+,=\[\]-]{1,128}")
_MOUNT = re.compile(r"/[^:,]*:/[^:,]*(:ro)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What a run itself decides: a profile that set these would make the job script say two things.
_OWN_OPTIONS = frozenset(
    {
        "array", "chdir", "comment", "cpus-per-task", "dependency", "error", "export", "export-file", "gid",
        "gpus", "gpus-per-node", "gpus-per-task", "gres", "input", "job-name", "kill-on-invalid-dep", "mem",
        "no-kill", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable",
        "requeue", "signal", "test-only", "time", "uid", "wait", "wrap",
    }
)  # fmt: skip


@dataclass(frozen=True)
class SiteContainer:
    """How commands enter an image here.

    Attributes:
        mounts: what every container of this site has mounted (`SOURCE:TARGET[:ro]`).
        images: folder for imported images, seen by all nodes; None: `images` beside the runs.
        pull: where an image is imported: on this `login` node, in a `job` of its own, or `never` by us.
        home: whether the user's home is seen inside.
    """

    runtime: Runtime = "none"
    mounts: tuple[str, ...] = ()
    images: str | None = None
    pull: Literal["login", "job", "never"] = "login"
    home: bool = False


@dataclass(frozen=True)
class Site:
    """One place to run.

    Attributes:
        python: argv of the interpreter that runs a rank; empty: this one, or `python3` inside a container.
        gpu_request: how this scheduler wants GPUs asked for: `--gpus-per-node`, `--gres`, or not at all.
        gpu_type: the type's name in the request (`a100`), None for any.
        cpus_per_device: CPUs a rank gets where the recipe does not say; None: 1.
        exclusive: whether to ask for whole nodes.
        sbatch: further long options of sbatch and their values (`true` for a flag).
        origin: where the profile comes from, for messages.
    """

    name: str
    scheduler: Literal["local", "slurm"]
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
    modules: tuple[str, ...] = ()
    sbatch: dict[str, str | bool] = field(default_factory=dict)
    origin: str = "built in"


LOCAL = Site(name="local", scheduler="local")
SLURM = Site(name="slurm", scheduler="slurm")


def load_site(name: str, *, search: list[Path] | None = None) -> Site:
    """The site called `name`: `local`, `slurm`, a profile's name, or a path to a profile (it has a `/` or a suffix).

    Raises SiteError for an unknown name (with those there are) and for every fault of a profile at once.
    """
    if name == "local":
        return LOCAL
    if name == "slurm":
        return SLURM
    if "/" in name or name.endswith((".yaml", ".yml")):
        return read_profile(Path(name).expanduser())
    known = _profiles(search if search is not None else search_folders())
    if name not in known:
        choices = ["local", "slurm", *sorted(known)]
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SiteError(
            f"--site {_shown(name)}: no such site; {hint}known: {', '.join(choices)}, or a path to a profile"
        )
    return read_profile(known[name])


def known_sites() -> dict[str, str]:
    """Every name for `--site`, and where it comes from."""
    found = {"local": "this machine (built in)", "slurm": "the scheduler's defaults (built in)"}
    return {**found, **{name: str(path) for name, path in _profiles(search_folders()).items()}}


def _profiles(folders: list[Path]) -> dict[str, Path]:
    """Profiles by name; of two alike the first folder's."""
    known: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            known.setdefault(path.stem, path)
    return known


def search_folders() -> list[Path]:
    """Where profiles are looked for by name: the user's own come before those of a checkout."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [config / "hpclm" / "sites", launch_folder() / "sites"]


def read_profile(path: Path) -> Site:
    """Read and check a profile. Raises SiteError naming every fault with its line."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SiteError(f"{path}: cannot read the site profile: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SiteError(f"{path}: the site profile is not UTF-8 text") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SiteError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict) or not isinstance(node, yaml.MappingNode):
        raise SiteError(f"{path}: a site profile is a mapping with at least `scheduler: slurm` or `scheduler: local`")
    lines = {key.value: key.start_mark.line + 1 for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    return _build(raw, path, lines)


def _build(raw: dict[Any, Any], path: Path, lines: dict[str, int]) -> Site:
    faults: list[str] = []

    def fault(key: str, message: str) -> None:
        top = key.split(".")[0].split("[")[0]
        faults.append(f"{path}:{lines.get(top, 1)} {key}: {message}")

    raw = {"name": path.stem, **raw}
    if "scheduler" not in raw:
        fault("scheduler", "is required; say `slurm` or `local`")
    values = _checked(Site, raw, "", fault)
    if not faults:
        _check_values(values, fault)
    if faults:
        raise SiteError("\n".join(faults))
    return Site(**values, origin=str(path))


def _checked(cls: type, raw: dict[Any, Any], prefix: str, fault: Any) -> dict[str, Any]:
    """The values of `raw` that are fields of `cls`, each of its type; the rest are faults."""
    hints = typing.get_type_hints(cls)
    hints.pop("origin", None)
    values: dict[str, Any] = {}
    for key, item in raw.items():
        place = f"{prefix}{_shown(key)}"
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            fault(place, f"unknown key; {f'did you mean {near[0]!r}? ' if near else ''}known: {', '.join(hints)}")
            continue
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if isinstance(item, dict):
                values[key] = hint(**_checked(hint, item, f"{place}.", fault))
            else:
                fault(place, "must be a mapping")
            continue
        problem = _type_problem(hint, item)
        if problem:
            fault(place, f"{problem}, not {_shown(item)}")
        else:
            values[key] = tuple(item) if typing.get_origin(hint) is tuple and isinstance(item, list) else item
            if key == "python" and isinstance(item, str):
                values[key] = (item,)
            if key == "environment":
                values[key] = {name: str(value) for name, value in item.items()}
    return values


def _type_problem(hint: Any, item: Any) -> str | None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return None if item in arguments else f"must be one of {', '.join(arguments)}"
    if origin is tuple:
        strings = isinstance(item, list) and all(isinstance(one, str) for one in item)
        return None if strings or isinstance(item, str) else "must be a list of strings"
    if origin is dict:
        scalars = isinstance(item, dict) and all(isinstance(value, (str, int, float, bool)) for value in item.values())
        return None if scalars else "must be a mapping of plain values"
    kinds = tuple(one for one in (arguments or (hint,)) if one is not type(None))
    if item is None:
        return None if type(None) in arguments else "must be given"
    if isinstance(item, bool) and bool not in kinds:
        return f"must be a {kinds[0].__name__}"
    return None if isinstance(item, kinds) else f"must be a {kinds[0].__name__}"


def _check_values(values: dict[str, Any], fault: Any) -> None:
    if not NAME.fullmatch(values["name"]):
        fault("name", f"{_shown(values['name'])} may hold letters, digits, dot, dash and underscore, 64 at the most")
    for key in ("partition", "account", "qos", "constraint", "gpu_type"):
        value = values.get(key)
        if value is not None and not _WORD.fullmatch(value):
            fault(key, f"{_shown(value)} is no word that Slurm knows")
    cpus = values.get("cpus_per_device")
    if cpus is not None and cpus < 1:
        fault("cpus_per_device", f"must be at least 1, not {cpus}")
    container = values.get("container", SiteContainer())
    if container.images is not None and not container.images.startswith("/"):
        fault("container.images", f"{_shown(container.images)} must be an absolute path")
    texts = {
        "container.images": [container.images or ""],
        "python": values.get("python", ()),
        "modules": values.get("modules", ()),
        "container.mounts": container.mounts,
        "runs_dir": [values.get("runs_dir") or ""],
    }
    for key, items in texts.items():
        if any(_CONTROL.search(item) for item in items):
            fault(key, "holds a control character")
    for mount in container.mounts:
        if not _MOUNT.fullmatch(mount):
            fault("container.mounts", f"{_shown(mount)} must be /source:/target or /source:/target:ro")
    _check_mappings(values, fault)


def _check_mappings(values: dict[str, Any], fault: Any) -> None:
    for name, value in values.get("environment", {}).items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            fault("environment", f"{_shown(name)} is no name of a variable")
        elif _CONTROL.search(value):
            fault(f"environment.{name}", "holds a control character")
    for key, value in values.get("sbatch", {}).items():
        if not isinstance(key, str) or not _OPTION.fullmatch(key):
            fault("sbatch", f"{_shown(key)} is no long option; write reservation: NAME, without dashes in front")
        elif key in _OWN_OPTIONS:
            fault(f"sbatch.{key}", "is decided by the run, not by the site")
        elif _CONTROL.search(str(value)):
            fault(f"sbatch.{key}", "holds a control character")


def _shown(value: Any) -> str:
    """A value in a message: short, and with no control character left in it."""
    text = value if isinstance(value, str) and _WORD.fullmatch(value) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
