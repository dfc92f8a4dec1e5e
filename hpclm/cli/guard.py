"""The edge of the command line: every mistake, the user's or the machine's, is one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hpclm.cli.terminal import plain_output
from hpclm.core.errors import HpclmError
from hpclm.core.exit_codes import ExitCode


def guarded(command: Callable[[list[str]], object], arguments: list[str]) -> int:
    """Run a command with its words; returns its exit code. `--debug` among them shows tracebacks."""
    debug = "--debug" in arguments or bool(os.environ.get("HPCLM_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    with plain_output():
        try:
            _refuse_bytes(arguments)
            command(arguments)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BrokenPipeError:
            # The reader (`head`) has closed the pipe; what Python would still flush is discarded.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.BROKEN_PIPE
        except (HpclmError, OSError) as error:
            if debug:
                raise
            print(f"error: {_described(error)}", file=sys.stderr)
            return error.exit_code if isinstance(error, HpclmError) else ExitCode.ERROR
    return 0


def _refuse_bytes(arguments: list[str]) -> None:
    """Raises HpclmError for a word that is not UTF-8: it can be written into no record and no script."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise HpclmError(f"{argument!r} is not UTF-8 text; rename the file, or correct the value") from None


def _described(error: HpclmError | OSError) -> str:
    """What is wrong; of an OSError on which file: a full disk, a folder one may not enter, a name too long."""
    if isinstance(error, HpclmError):
        return str(error)
    what = error.strerror or str(error) or type(error).__name__
    return what if error.filename is None else f"{error.filename}: {what}"
