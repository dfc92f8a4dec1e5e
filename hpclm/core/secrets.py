"""Secrets of a site: named in its profile, read where they are used, and written nowhere. Standard library only."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.core.files import open_text

# Letters of both cases and a digit, as keys have and names of files seldom
_KEY = r"(?=[\w-]{0,40}[a-z])(?=[\w-]{0,40}[A-Z])(?=[\w-]{0,40}[0-9])"
# Prefixes of tokens as their issuers document them: Hugging Face, GitHub, GitLab, OpenAI and others, NVIDIA, AWS,
# Slack, Weights & Biases, JSON web tokens, PEM.
_VALUES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|nvapi-[\w-]{16,}"
    r"|wandb_v1_\w{16,}"
    rf"|sk-{_KEY}[\w-]{{20,}}|(AKIA|ASIA)[0-9A-Z]{{16}}|xox[abprs]-[\w-]{{10,}}"
    r"|eyJ[\w-]{10,4096}\.eyJ[\w-]{10,4096}\.)|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_NAMES = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|SECRET_KEY|CREDENTIALS?)$", re.IGNORECASE)
# user:password@ of an address, and of an image, before the name of a registry
# Bounded: text of a megabyte must not be searched from every character to its end.
_PASSWORDS = re.compile(
    r"(?P<of_address>\b[a-z][a-z0-9+.-]{0,20}://[^\s/@:\"']{0,128}):[^\s\"'@]{1,512}(?=@)"
    r"|(?<![^\s/=\"'])(?P<of_image>[^\s/@:=\"'\d][^\s/@:=\"']{0,128}):[^\s/@\"']{1,512}"
    r"(?=@[A-Za-z0-9-]{1,63}\.[A-Za-z0-9.-]{1,128}(:\d{1,5})?[/#])"
)
_LEAST = 8
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Secret:
    """Where a variable's value comes from: a variable of the shell that submits, or a file that the node reads."""

    from_env: str | None = None
    from_file: str | None = None


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable of an environment seems to be a token or a password: by its value, or else by its name."""
    if _VALUES.search(value) or _PASSWORDS.search(value):
        return True
    # paths, and tokens of a vocabulary such as <|endoftext|>
    is_other = value.startswith(("/", "~", "./", "$")) or any(mark in value for mark in "<>[]|")
    return _NAMES.search(name) is not None and len(value) >= _LEAST and not is_other


def masked(text: str) -> str:
    """The text without tokens and passwords, for whatever is shown or recorded."""
    return _PASSWORDS.sub(lambda one: f"{one['of_address'] or one['of_image']}:***", _VALUES.sub("***", text))


def without_secrets(value: Any, name: str = "") -> Any:
    """JSON-ready values with `***` for each secret in them, by what they look like and by the key that has them."""
    if isinstance(value, Mapping):
        return {masked(str(key)): without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    shown = masked(value)
    return "***" if shown == value and looks_secret(name, value) else shown


def missing(secrets: Mapping[str, Secret], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Why secrets could not be read, one message each."""
    problems = []
    for name, secret in secrets.items():
        if secret.from_env is not None and not environment.get(secret.from_env):
            problems.append(f"secrets.{name}: the variable {secret.from_env} is not set here; set it and submit again")
        if secret.from_file is not None:
            try:
                open_text(Path(secret.from_file)).close()
            except OSError as error:
                problems.append(f"secrets.{name}: {secret.from_file}: {error.strerror}")
    return problems


def values(secrets: Mapping[str, Secret], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables with their values, for a process that is about to be started. Raises OSError."""
    found = {}
    for name, secret in secrets.items():
        if secret.from_file is not None:
            with open_text(Path(secret.from_file)) as stream:
                found[name] = stream.read(_MAX_BYTES).strip()
        elif secret.from_env is not None:
            found[name] = environment.get(secret.from_env, "")
    return found


def shell_lines(secrets: Mapping[str, Secret]) -> list[str]:
    """The same for a job's script, which has no value in it."""
    lines = []
    for name, secret in sorted(secrets.items()):
        if secret.from_file is not None:
            lines.append(f"{name}=$(cat -- {shlex.quote(secret.from_file)}) || exit 1")
            lines.append(f"export {name}")
        elif secret.from_env is not None:
            lines.append(f'export {name}="${{{secret.from_env}:-}}"')
    return lines
