"""Sites by name. What needs no profile needs no schema either: `hpclm status` responds at once."""

from __future__ import annotations

import os
from pathlib import Path

from hpclm.core.errors import SiteError
from hpclm.core.nearest import nearest_name
from hpclm.core.registries import SCHEDULERS
from hpclm.core.shipped import launch_folder
from hpclm.core.site import Site


def load_site(name: str, *, search: list[Path] | None = None) -> Site:
    """The site called `name`: a scheduler's, a profile's, or a path to a profile (with a `/` or a suffix).

    Raises SiteError for an unknown name (listing the known ones), and for all errors of a profile at once.
    """
    if name in SCHEDULERS.builtin_names():
        return Site(name=name, scheduler=name)
    from hpclm.recipe.site_profile import read_profile

    if "/" in name or name.endswith((".yaml", ".yml")):
        return read_profile(Path(name).expanduser())
    known = _profiles(search if search is not None else search_folders())
    if name in known:
        return read_profile(known[name])
    if name in SCHEDULERS:
        return Site(name=name, scheduler=name)
    choices = [*SCHEDULERS.names(), *sorted(known)]
    near = nearest_name(name, choices)
    hint = f"did you mean {near!r}? " if near else ""
    raise SiteError(f"--site {name[:80]!r}: unknown site; {hint}known: {', '.join(choices)}, or a path to a profile")


def known_sites() -> dict[str, str]:
    """Every name for `--site`, and where it comes from."""
    found = {name: _origin(name) for name in SCHEDULERS.names()}
    return {**found, **{name: str(path) for name, path in _profiles(search_folders()).items()}}


def _origin(scheduler: str) -> str:
    package = "built in" if SCHEDULERS.is_builtin(scheduler) else f"from {SCHEDULERS.locations()[scheduler]}"
    return f"{'this machine' if scheduler == 'local' else f'the defaults of {scheduler}'} ({package})"


def _profiles(folders: list[Path]) -> dict[str, Path]:
    """Profiles by name; if two have the same name, the first folder wins."""
    known: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            known.setdefault(path.stem, path)
    return known


def search_folders() -> list[Path]:
    """Where profiles are looked for by name: the user's own folder comes before that of a checkout."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [config / "hpclm" / "sites", launch_folder() / "sites"]
