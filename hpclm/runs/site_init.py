"""`hpclm site init`: a site profile drafted from what a scheduler says."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.errors import SiteError
from hpclm.core.files import write_text
from hpclm.core.registries import SCHEDULERS
from hpclm.recipe.site_profile import NAME, read_profile
from hpclm.recipe.sites import search_folders


def write_profile(name: str, out: Path | None, *, scheduler: str = "slurm", force: bool = False) -> Path:
    """Look, and write the profile `name` to the user's own profiles (or `out`); returns where.

    Raises SiteError where there is one already (unless `force`) or the name cannot be one; SchedulerError where there
    is no scheduler.
    """
    if not NAME.fullmatch(name) or name in SCHEDULERS:
        raise SiteError(
            f"{name!r} cannot be a profile's name: letters, digits, dot, dash and underscore, not "
            f"{' or '.join(SCHEDULERS.names())}"
        )
    path = out or search_folders()[0] / f"{name}.yaml"
    if path.exists() and not force:
        raise SiteError(f"{path} is there already; --force replaces it, or give another name")
    text = SCHEDULERS.get(scheduler).draft_profile()
    try:
        write_text(path, text)
    except OSError as error:
        raise SiteError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        read_profile(path)  # it must be right at once
    except SiteError:
        path.unlink()
        raise
    return path
