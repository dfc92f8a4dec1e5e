"""`hpclm site init`: a draft of a site profile from what a scheduler reports."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import SiteError
from hpclm.core.files import write_text
from hpclm.core.registries import SCHEDULERS
from hpclm.recipe.site_profile import NAME, read_profile
from hpclm.recipe.sites import search_folders


def write_profile(name: str, out: Path | None, *, scheduler: str = "slurm", force: bool = False) -> Path:
    """Query the cluster and write the profile `name` to the user's own profiles (or `out`); returns its path.

    Raises SiteError where there is one already (unless `force`) or the name is invalid;
    SchedulerError if there is no scheduler.
    """
    if not NAME.fullmatch(name) or name in SCHEDULERS:
        raise SiteError(
            f"{name!r} is not a valid profile name: letters, digits, dot, dash and underscore, not "
            f"{' or '.join(SCHEDULERS.names())}"
        )
    path = out or search_folders()[0] / f"{name}.yaml"
    if path.exists() and not force:
        raise SiteError(f"{path} already exists; --force replaces it, or give another name")
    text = SCHEDULERS.get(scheduler).draft_profile()
    try:
        write_text(path, text)
    except OSError as error:
        raise SiteError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        read_profile(path)  # it must be valid immediately
    except SiteError:
        path.unlink()
        raise
    return path
