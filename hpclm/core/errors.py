"""Every error that a user can see, with its exit code.

A user's mistake is raised as a subclass of `HpclmError` and printed as one message; anything else is a bug of hpclm and
keeps its traceback. A message says what is wrong, where, and how to fix it.
"""

from __future__ import annotations

from hpclm.core.exit_codes import ExitCode


class HpclmError(Exception):
    """Base of the tree. `exit_code` is what the command line returns for it."""

    exit_code = ExitCode.ERROR


class RecipeError(HpclmError):
    """The recipe cannot be read: YAML syntax, unknown key, wrong type, bad override."""

    exit_code = ExitCode.RECIPE


class PlanError(HpclmError):
    """The recipe is well-formed but cannot run; carries every finding at once."""

    exit_code = ExitCode.PLAN


class SiteError(HpclmError):
    """The site profile or the machine lacks what the run needs."""

    exit_code = ExitCode.SITE


class SchedulerError(HpclmError):
    """The scheduler refused a request or did not respond."""

    exit_code = ExitCode.SCHEDULER


class RunNotFoundError(HpclmError):
    """No run of that name."""

    exit_code = ExitCode.RUN_NOT_FOUND


class RunFailedError(HpclmError):
    """The run ended without completing."""

    exit_code = ExitCode.RUN_FAILED


class IncompleteError(HpclmError):
    """The requested results are not complete."""

    exit_code = ExitCode.INCOMPLETE


class DataError(HpclmError):
    """A data file is missing or malformed: `file:line: what; how to fix it`."""

    exit_code = ExitCode.DATA


class DamagedError(HpclmError):
    """A file of a run is not what was written there."""


class CheckpointError(HpclmError):
    """A checkpoint is missing, damaged or belongs to another model."""

    exit_code = ExitCode.CHECKPOINT


class PeerError(RuntimeError):
    """Another rank failed while this one waited for it; that rank's record says why."""
