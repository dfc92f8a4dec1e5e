"""The only module that imports submitit: job script text without a cluster, and one clear message if that fails.

submitit has no public call that renders a script; `submit` writes one only together with a pickle and a call of
sbatch. So a private method is called, the one that submitit's plugins implement, and what it returns is checked on
every call. tests/launch/test_submitit_contract.py runs it against every release that pyproject.toml allows.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from hpclm.core.errors import SchedulerError

# Parameters for submitit itself; every other parameter is an option of sbatch.
_STEERING = frozenset({"additional_parameters", "signal_delay_s", "stderr_to_stdout", "use_srun"})
_MARKER = re.compile(r"export SUBMITIT_\w+=\w*")


def render_script(folder: str, parameters: Mapping[str, Any], command: str) -> str:
    """A whole job script: `#!`, one #SBATCH line for each option, then `command` (shell text), which ends it.

    `parameters` are those of submitit's SlurmExecutor. All that submitit has a default for must be in them: job_name,
    time, nodes, signal_delay_s, and wckey (None for no option).
    Raises SchedulerError where the installed submitit cannot do it, or returns a text that hpclm cannot use.
    """
    # submitit takes the signal's name from the user's environment (SUBMITIT_PREEMPT_SIGNAL); ranks expect USR2.
    extra = {"signal": f"USR2@{parameters['signal_delay_s']}", **parameters.get("additional_parameters", {})}
    cause: Exception | None = None
    try:
        text = _render(folder, {**parameters, "additional_parameters": extra}, command)
        fault = _fault(text, _sbatch_words(parameters, extra), command)
    except Exception as error:  # a private method that has changed can fail in any way
        first_line = (str(error).splitlines() or [""])[0]
        cause, fault = error, f"{type(error).__name__}: {first_line}"
    if fault:
        raise SchedulerError(_message(fault)) from cause
    return str(text)


def _render(folder: str, parameters: dict[str, Any], command: str) -> Any:
    # Imported on first use: submitit takes as long to import as everything else a command needs.
    from submitit.slurm import slurm

    class OfflineExecutor(slurm.SlurmExecutor):  # type: ignore[misc]
        """submitit's executor, for scripts that can be rendered anywhere."""

        @classmethod
        def affinity(cls) -> int:
            return 2  # rendering does not need srun; submitting checks for sbatch itself

    executor = OfflineExecutor(folder=folder)
    executor.update_parameters(**parameters)
    return executor._make_submission_file_text(command, "")


def _sbatch_words(parameters: Mapping[str, Any], extra: Mapping[str, Any]) -> set[str]:
    """What must follow #SBATCH, unquoted. Logs are appended to: a requeued job has the same id."""
    asked = {key: value for key, value in parameters.items() if key not in _STEERING and value is not None}
    options = {"open-mode": "append", **asked, **extra}
    names = {key: key.replace("_", "-") for key in options}
    return {f"--{names[key]}" if value is True else f"--{names[key]}={value}" for key, value in options.items()}


def _fault(text: Any, expected: set[str], command: str) -> str | None:
    """What is wrong with the text, or None. sbatch reads options only up to the first statement."""
    if not isinstance(text, str) or not text.startswith("#!"):
        return "its text does not begin with #!"
    before, found, after = text.rpartition(f"\n{command}")
    if not found or after.strip():
        return "its text does not end with the command it was given"
    words: list[str] = []
    statements: list[str] = []
    for line in before.splitlines():
        if line.startswith("#SBATCH ") and not statements:
            words += shlex.split(line.removeprefix("#SBATCH "))
        elif line.strip() and not line.startswith("#"):
            statements.append(line)
    if missing := sorted(expected.difference(words)):
        return f"its text does not contain the sbatch option {missing[0]}"
    if unasked := sorted(set(words) - expected):
        return f"its text has the sbatch option {unasked[0]}, which was not requested"
    if extra := [line for line in statements if not _MARKER.fullmatch(line)]:
        return f"its text runs {extra[0]!r} before the command"
    return None


def _message(fault: str) -> str:
    import importlib.metadata

    try:
        installed = importlib.metadata.version("submitit")
    except importlib.metadata.PackageNotFoundError:
        installed = "(not installed)"
    return f"submitit {installed} cannot make the job script hpclm needs: {fault}; install {_allowed()} with pip"


def _allowed() -> str:
    """The version range that hpclm requires, as installed: it is declared only in pyproject.toml."""
    import importlib.metadata

    try:
        requirements = importlib.metadata.requires("hpclm") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        if found := re.fullmatch(r"submitit\s*\(?([^;)]+?)\)?\s*", requirement):
            # Build tools sort the bounds in any order; the lower one is shown first.
            return f"'submitit{','.join(sorted(found[1].split(','), reverse=True))}'"
    return "a submitit that hpclm's pyproject.toml allows"
