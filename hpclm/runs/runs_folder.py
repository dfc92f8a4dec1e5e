"""Finds the folder that holds the runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hpclm.core.errors import SiteError
from hpclm.core.site import Site

# Slurm expands % and \ in log names; PYTHONPATH is split at colons; the rest cannot be
# written in a line of a job script.
_FORBIDDEN = {"%": "%", "\\": "a backslash", ":": "a colon"}


def runs_folder(given: Path | None, site: Site, environment: Mapping[str, str] = os.environ) -> Path:
    """`--runs-dir`, else $HPCLM_RUNS_DIR, else the site's `runs_dir`, else ./runs; absolute.

    Raises SiteError for a path that a scheduler would not take literally.
    """
    if given is not None:
        chosen, source = str(given), "--runs-dir"
    elif environment.get("HPCLM_RUNS_DIR"):
        chosen, source = environment["HPCLM_RUNS_DIR"], "$HPCLM_RUNS_DIR"
    elif site.runs_dir:
        chosen, source = site.runs_dir, f"{site.origin} runs_dir"
    else:
        chosen, source = "runs", "the current directory"
    folder = Path(os.path.abspath(Path(chosen).expanduser()))  # noqa: PTH100 - symbolic links are kept
    for character, name in _FORBIDDEN.items():
        if character in str(folder):
            raise SiteError(
                f"{source}: {str(folder)!r} contains {name}, which breaks paths in a job; choose another folder"
            )
    if any(ord(character) < 32 or ord(character) == 127 for character in str(folder)):
        raise SiteError(f"{source}: {str(folder)!r} contains a control character; choose another folder")
    return folder
