"""Every error a user can meet, with its exit code.

A user's mistake is raised as a subclass of `HpclmError` and printed as one message; anything else is a bug of ours
and keeps its traceback. Messages say what, where and how to mend.
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
    """The recipe is well-formed but cannot run as asked; carries every finding at once."""

    exit_code = ExitCode.PLAN


class SiteError(HpclmError):
    """The site profile or the machine lacks what the run needs."""

    exit_code = ExitCode.SITE


class SchedulerError(HpclmError):
    """The scheduler refused or could not be asked."""

    exit_code = ExitCode.SCHEDULER


class RunNotFoundError(HpclmError):
    """No run of that name."""

    exit_code = ExitCode.RUN_NOT_FOUND


class RunFailedError(HpclmError):
    """The run ended, but not well."""

    exit_code = ExitCode.RUN_FAILED


class IncompleteError(HpclmError):
    """Results asked for are not all there."""

    exit_code = ExitCode.INCOMPLETE


class DataError(HpclmError):
    """A data file is missing or malformed: `file:line: what; how to mend`."""

    exit_code = ExitCode.DATA


class CheckpointError(HpclmError):
    """A checkpoint is absent, damaged or of another model."""

    exit_code = ExitCode.CHECKPOINT
