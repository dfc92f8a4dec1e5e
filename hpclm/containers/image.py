"""How users write an image, and how each runtime writes it.

Users write `nvcr.io/nvidia/nemo:23.02`, `nvcr.io#nvidia/nemo:23.02`, `docker://…`, `user@registry#…`, or a path to a
.sqsh, a .sif or an unpacked folder. Sources: `enroot import` (`docker://[USER@][REGISTRY#]IMAGE[:TAG]`), Apptainer's
`docker://` URIs, Docker's rule for what counts as a registry (a first part with a dot, a colon, or `localhost`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from hpclm.core.errors import SiteError
from hpclm.core.image_words import PASSWORD_WORDS, has_password

_USER = re.compile(r"[A-Za-z0-9._$-]+")
_NAME = re.compile(r"[a-z0-9]+([._/-]+[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[a-z0-9+._-]+:[0-9a-f]{32,128}")
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Image:
    """An image: a file or folder on the cluster's file system (`path`), or one of a registry (`name`).

    Attributes:
        registry: None for Docker Hub.
        version: tag, or digest with its `@`; empty for the registry's `latest`.
    """

    path: str | None = None
    user: str | None = None
    registry: str | None = None
    name: str = ""
    version: str = ""

    @property
    def tail(self) -> str:
        """Name with tag or digest."""
        separator = "" if not self.version or self.version.startswith("@") else ":"
        return f"{self.name}{separator}{self.version}"

    @property
    def pyxis(self) -> str:
        """`[USER@][REGISTRY#]IMAGE[:TAG]`; Pyxis takes what starts with `/` or `.` for a path, anything else not."""
        if self.path is not None:
            return self.path
        registry = f"{self.registry}#" if self.registry else ""
        return f"{self.user}@{registry}{self.tail}" if self.user else f"{registry}{self.tail}"

    @property
    def enroot(self) -> str:
        """The URI of `enroot import`. Before Enroot 4.0 `nvcr.io/x` was looked for on Docker Hub, so `#` it is."""
        return f"docker://{self.pyxis}"

    @property
    def singularity(self) -> str:
        """A path, or Apptainer's URI with slashes."""
        if self.path is not None:
            return self.path
        return f"docker://{self.registry}/{self.tail}" if self.registry else f"docker://{self.tail}"

    def file_name(self, suffix: str) -> str:
        """The file name of an imported copy: readable, plain, and different for every image."""
        whole = self.singularity.removeprefix("docker://")
        readable = re.sub(r"[^A-Za-z0-9._-]+", "+", whole)[:100]
        return f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}{suffix}"


def parse_image(text: str) -> Image:
    """The image that the text names. Raises SiteError for invalid text, and for text
    that a runtime would cut or execute."""
    if has_password(text):
        raise SiteError(PASSWORD_WORDS)
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise SiteError(f"image {text!r}: contains a control character; remove it")
    if text.startswith(("/", "./", "../", "~")) or text.endswith((".sqsh", ".sif")):
        return Image(path=_path(text))
    rest = text.removeprefix("docker://")
    if "://" in rest:
        raise SiteError(f"image {text!r}: only docker:// is supported; give registry/name:tag or an absolute path")
    user, at, named = rest.partition("@")
    if not at or "/" in user or ":" in user or "#" in user:
        user, named = "", rest  # the @ is a digest's, or there is none
    elif not user:
        named = rest  # which no pattern below accepts
    registry, hash_sign, tail = named.partition("#")
    if not hash_sign:
        registry, tail = _split_registry(named)
    name, version = _split_version(tail)
    wrong = (
        (user and not _USER.fullmatch(user))
        or (registry and not _REGISTRY.fullmatch(registry))
        or not _NAME.fullmatch(name)
    )
    if wrong or (version and not (_TAG.fullmatch(version) or _DIGEST.fullmatch(version.removeprefix("@")))):
        raise SiteError(
            f"image {text!r} is not a valid image; give registry/name:tag in lower case, such as "
            "nvcr.io/nvidia/nemo:23.02, or an absolute path to a .sqsh or .sif"
        )
    return Image(None, user or None, registry or None, name, version)


def squashed(text: str, runtime: str) -> Image:
    """The image for a runtime that takes .sqsh files. Raises SiteError as `parse_image` does, and for a .sif."""
    image = parse_image(text)
    if image.path is not None and image.path.endswith(".sif"):
        raise SiteError(f"image {text}: is an Apptainer file, but {runtime} needs .sqsh; give the registry's image")
    return image


def _path(text: str) -> str:
    path = text.removeprefix("docker://")
    if not PurePosixPath(path).is_absolute():
        raise SiteError(f"container image {text!r}: give an absolute path")
    bad = next((character for character in path if character in "'\"`$\\,:# \t"), None)
    if bad is not None:
        # enroot hands the path to a shell between single quotes; pyxis and fstab split at the others
        raise SiteError(
            f"container image {text!r}: contains {bad!r}, which container runtimes misread; "
            "rename it or use a symbolic link"
        )
    return path


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return "", text


def _split_version(text: str) -> tuple[str, str]:
    name, at, digest = text.partition("@")
    if at:
        return name.partition(":")[0], f"@{digest}"
    name, _, tag = text.partition(":")
    return name, tag
