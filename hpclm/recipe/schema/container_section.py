"""The image a stage runs in. The site decides how it is started."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from hpclm.core.image_words import PASSWORD_WORDS, has_password
from hpclm.core.registries import RUNTIMES
from hpclm.recipe.schema.base import (
    Line,
    PathText,
    Section,
    absolute_path,
    fault,
    no_secrets,
    one_line,
    registered,
    shown,
)

_IMAGE = re.compile(r"[A-Za-z0-9._/:#@+=-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Set by the launcher and the scheduler; PYXIS_ and ENROOT_ variables inject options into the runtime.
_OWN_PREFIXES = ("HPCLM_", "SLURM_", "SBATCH_", "SRUN_", "PYXIS_", "ENROOT_")


def _image(text: str, info: ValidationInfo) -> str:
    one_line(text)
    if has_password(text):
        raise fault(PASSWORD_WORDS)
    if text.startswith(("./", "../", "/")) or ("/" not in text and text.endswith((".sqsh", ".sif"))):
        return absolute_path(text, info)
    if not _IMAGE.fullmatch(text):
        raise fault(
            f"{shown(text)} is not a valid image; give one such as nvcr.io/nvidia/nemo:23.02, "
            "or a path that starts with ./ or /"
        )
    return text


def _mountable(text: str) -> str:
    if "," in text or ":" in text:
        raise fault(
            f"{shown(text)}: container runtimes cannot mount a path with ',' or ':'; rename it or use a symbolic link"
        )
    return text


def _inside(text: str) -> str:
    if not text.startswith("/"):
        raise fault(f"{shown(text)} is a path inside the container; start it with /")
    return _mountable(one_line(text))


def variable_name(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise fault(f"{shown(text)} is not a valid variable name; use letters, digits and _")
    if text.startswith(_OWN_PREFIXES):
        raise fault(f"{text} belongs to the launcher or the scheduler; use another name")
    return text


InsidePath = Annotated[str, AfterValidator(_inside)]


class Mount(Section):
    """A folder of the host that is mounted in the container."""

    source: Annotated[PathText, AfterValidator(_mountable)] = Field(description="folder or file on the host")
    target: InsidePath = Field(description="absolute path inside")
    read_only: bool = Field(default=False, description="refuse writes from inside")


class Container(Section):
    """An image, what is mounted into it, and its environment."""

    image: Annotated[str, AfterValidator(_image)] = Field(
        description="registry/name:tag, or a path to a .sqsh or .sif file"
    )
    mounts: tuple[Mount, ...] = Field(default=(), description="besides the run folder, which is always mounted")
    workdir: InsidePath | None = Field(default=None, description="folder a rank starts in; null: the run's")
    runtime: registered(RUNTIMES) | None = Field(  # type: ignore[valid-type]
        default=None, description="container runtime; null: the site's"
    )
    writable: bool = Field(default=False, description="let ranks write into the image's own folders; changes are lost")
    home: bool | None = Field(default=None, description="mount the home folder inside; null: as the site says")
    environment: Annotated[dict[Annotated[str, AfterValidator(variable_name)], Line], AfterValidator(no_secrets)] = (
        Field(default_factory=dict, description="variables set inside; secrets belong to `secrets` in the site profile")
    )
