"""Passwords in the text of an image, which are refused without being repeated."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"^(?:[a-z]+://)?[^/@#]*:[^/@#]+@(?![a-z0-9+._-]+:[0-9a-f]{32,128}$)")
PASSWORD_WORDS = (
    "an image with a password or token in it is not taken, since it would be written to the run's folder; leave it out "
    "and give it to the container runtime instead (`hpclm image pull` says where)"
)


def has_password(image: str) -> bool:
    """Whether a user and a password stand before the registry, as in docker://user:password@registry/name."""
    return _PASSWORD.match(image) is not None
