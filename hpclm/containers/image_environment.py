"""How a variable's value reaches the container unchanged, where a runtime would cut or execute it.

Apptainer and Singularity put `APPTAINERENV_X` and `--env` between double quotes into a shell script, so `$(…)` in a
value is executed; Enroot removes quotes around a value, and gives an unset variable as an empty one.
A value is therefore passed under a name of ours, after a character that keeps it from looking quoted, and a shell
inside the container sets the real name. Sources: Apptainer's injectEnvHandler, Enroot's
common::envfmt and runtime::_do_environ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_CARRIER = "HPCLM_IN_"
# What --nv has put there comes after what the user wants first.
_JOINED = frozenset(["LD_LIBRARY_PATH"])


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """What the job exports so that `entry` finds `environment` inside the container."""
    return {f"{_CARRIER}{name}": f"={value}" for name, value in sorted(environment.items())}


def entry(names: Iterable[str], *, workdir: str | None = None, drop_if_empty: Iterable[str] = ()) -> tuple[str, ...]:
    """argv that goes between the image and the command: the carried variables, and the folder to start in.

    `names` and `drop_if_empty` are names of variables and become shell; `workdir` may be any text.
    """
    lines = [f'[ -n "${{{name}}}" ] || unset {name}' for name in drop_if_empty]
    if workdir:
        lines.append('cd "$1" || exit; shift')
    settings = (f'{name}="${{{_CARRIER}{name}#=}}{_tail(name)}"' for name in sorted(names))
    lines.append(" ".join(["exec env", *settings, '"$@"']))
    return ("sh", "-c", "; ".join(lines), "sh", *([workdir] if workdir else []))


def _tail(name: str) -> str:
    return f"${{{name}:+:${name}}}" if name in _JOINED else ""
