"""Site profiles: YAML read by the recipe's own tree and schema, so that both have the
same syntax and report lines in the same way.

    name: mycluster
    scheduler: slurm                # or local, or another package's
    partition: gpu
    account: project-42
    runs_dir: /scratch/me/runs
    python: /opt/env/bin/python     # what runs a rank; inside a container: python3
    container:
      runtime: pyxis                # none, pyxis, enroot, singularity or apptainer
      mounts: ["/scratch:/scratch"]
    environment: {NCCL_SOCKET_IFNAME: ib0}
    secrets: {HF_TOKEN: {from_env: HF_TOKEN}}       # or {from_file: ~/.cache/huggingface/token}
    modules: [cuda/12.4]
    sbatch: {reservation: course}   # further options of sbatch, by their long names

Values are never interpreted by a shell: each is checked here and quoted where it is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError, model_validator

from hpclm.core.errors import RecipeError, SiteError
from hpclm.core.nearest import nearest_name
from hpclm.core.registries import RUNTIMES, SCHEDULERS
from hpclm.core.secrets import Secret
from hpclm.core.site import NO_RUNTIME, Site, SiteContainer
from hpclm.recipe.error_messages import faults
from hpclm.recipe.schema.base import Section, described, fault, no_secrets, registered, shown
from hpclm.recipe.schema.container_section import variable_name
from hpclm.recipe.tree import Node, read_tree, with_keys

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_WORD = re.compile(r"[A-Za-z0-9._:@/+,=\[\]-]{1,128}")
_MOUNT = re.compile(r"/[^:,]*:/[^:,]*(:ro)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Set by the run itself: a profile that set these would make the job script contradictory.
_OWN_OPTIONS = frozenset(
    {
        "array", "chdir", "comment", "cpus-per-task", "dependency", "error", "export", "export-file", "gid",
        "gpus", "gpus-per-node", "gpus-per-task", "gres", "input", "job-name", "kill-on-invalid-dep", "mem",
        "no-kill", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable",
        "requeue", "signal", "test-only", "time", "uid", "wait", "wrap",
    }
)  # fmt: skip


def _plain(text: str) -> str:
    if _CONTROL.search(text):
        raise fault(f"{shown(text)} contains a control character; remove it")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise fault(f"{shown(text)} is not a valid name for a scheduler; use letters, digits and ._:@/+,=[]-")
    return text


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise fault(f"{shown(text)} may contain letters, digits, dots, dashes and underscores, at most 64")
    return text


def _mount(text: str) -> str:
    if not _MOUNT.fullmatch(_plain(text)):
        raise fault(f"{shown(text)} must be /source:/target or /source:/target:ro")
    return text


def _absolute(text: str) -> str:
    if not _plain(text).startswith("/"):
        raise fault(f"{shown(text)} must be an absolute path")
    return text


def _runtime(value: object) -> str:
    if value == NO_RUNTIME or (isinstance(value, str) and value in RUNTIMES):
        return str(value)
    names = (NO_RUNTIME, *RUNTIMES.names())
    near = nearest_name(str(value), names)
    hint = f"did you mean {near}? " if near else ""
    raise fault(f"must be one of the allowed values, not {described(value)}; {hint}choose {', '.join(names)}")


def _listed(value: object) -> object:
    """A single text is short for a list of one."""
    return (value,) if isinstance(value, str) else value


def _text_of(value: object) -> object:
    """Numbers and truth values of an environment as the text that a shell would give them."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise fault(f"{shown(text)} is not a variable name; use letters, digits and _")
    return text


def _secret_file(text: str) -> str:
    if text.startswith("~/"):
        return str(Path(text).expanduser())
    return _absolute(text)


def _option(text: str) -> str:
    if not _OPTION.fullmatch(text):
        raise fault(f"{shown(text)} is not a long option; write reservation: NAME, without leading dashes")
    if text in _OWN_OPTIONS:
        raise fault(f"{text} is set by hpclm for each run, not by the site profile; leave it out")
    return text


Text = Annotated[str, AfterValidator(_plain)]
Word = Annotated[str, AfterValidator(_word)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed)]


class ContainerProfile(Section):
    """How commands run in containers at this site."""

    runtime: Annotated[str, PlainValidator(_runtime)] = Field(
        default=NO_RUNTIME, description="none, pyxis, enroot, singularity or apptainer"
    )
    mounts: Annotated[tuple[Annotated[str, AfterValidator(_mount)], ...], BeforeValidator(_listed)] = Field(
        default=(), description="mounts of every container at this site, /source:/target[:ro]"
    )
    images: Annotated[str, AfterValidator(_absolute)] | None = Field(
        default=None, description="folder for imported images, shared by all nodes; null: next to the runs"
    )
    pull: Literal["login", "job", "never"] = Field(default="login", description="where an image is imported")
    home: bool = Field(default=False, description="whether the home folder is mounted")


def _no_value(value: object) -> object:
    if not isinstance(value, dict):
        raise fault("give {from_env: NAME} or {from_file: PATH}; the value itself is never written here")
    return value


class SecretSource(Section):
    """Where the value of a secret comes from; one of the two."""

    from_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        default=None, description="a variable of the shell that submits"
    )
    from_file: Annotated[str, AfterValidator(_secret_file)] | None = Field(
        default=None, description="a file that the node reads, absolute or ~/…"
    )

    @model_validator(mode="after")
    def _one(self) -> SecretSource:
        if (self.from_env is None) == (self.from_file is None):
            raise fault("give one of from_env and from_file")
        return self


class SiteProfile(Section):
    """A site profile as the user writes it."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="default: the file's name")
    scheduler: registered(SCHEDULERS) = Field(description="slurm, or local for this machine")  # type: ignore[valid-type]
    partition: Word | None = Field(default=None, description="null: the cluster's default")
    account: Word | None = Field(default=None, description="null: the user's default")
    qos: Word | None = Field(default=None, description="quality of service")
    constraint: Word | None = Field(default=None, description="features that nodes must have")
    runs_dir: Text | None = Field(default=None, description="folder of the runs, shared by all nodes")
    python: Texts = Field(default=(), description="interpreter of a rank outside a container")
    gpu_request: Literal["gpus-per-node", "gres", "none"] = Field(
        default="gpus-per-node", description="how GPUs are requested"
    )
    gpu_type: Word | None = Field(default=None, description="the type's name in the request")
    cpus_per_device: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="CPUs per rank if the recipe sets none"
    )
    exclusive: bool = Field(default=False, description="whole nodes")
    container: ContainerProfile = Field(default=ContainerProfile(), description="how commands run in containers")
    environment: Annotated[
        dict[Annotated[str, AfterValidator(_variable)], Annotated[Text, BeforeValidator(_text_of)]],
        AfterValidator(no_secrets),
    ] = Field(default_factory=dict, description="variables of every job; written to its run")
    secrets: dict[
        Annotated[str, AfterValidator(variable_name)], Annotated[SecretSource, BeforeValidator(_no_value)]
    ] = Field(default_factory=dict, description="variables whose values no file of a run contains")
    modules: Texts = Field(default=(), description="what `module load` loads first")
    sbatch: dict[Annotated[str, AfterValidator(_option)], bool | Annotated[Text, BeforeValidator(_text_of)]] = Field(
        default_factory=dict, description="further long options of sbatch"
    )


def read_profile(path: Path) -> Site:
    """Read and check a profile. Raises SiteError listing every error with its line."""
    try:
        _, root = read_tree(path, "site profile")
        assert isinstance(root.value, dict)
        tree = Node({"name": Node(path.stem, root.place), **root.value}, root.place)
        tree = with_keys(tree)
        profile = SiteProfile.model_validate(tree.plain())
    except RecipeError as error:
        raise SiteError(str(error)) from None
    except ValidationError as error:
        raise SiteError("\n".join(faults(error, tree, SiteProfile))) from None
    values: dict[str, Any] = dict(profile)
    secrets = {name: Secret(**dict(source)) for name, source in profile.secrets.items()}
    container = SiteContainer(**dict(profile.container))
    return Site(**{**values, "container": container, "secrets": secrets}, origin=str(path))
