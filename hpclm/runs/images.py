"""Importing an image by itself, before any run needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclm.containers import image_cache, parse_image
from hpclm.core.errors import SiteError
from hpclm.core.site import NO_RUNTIME
from hpclm.core.sweep_layout import RunsFolder
from hpclm.recipe.sites import load_site
from hpclm.runs.job_building import images_folder
from hpclm.runs.runs_folder import runs_folder
from hpclm.schedulers.interface import scheduler_of


@dataclass(frozen=True)
class Pulled:
    """The result of an import: the file, whether it was created now, and the job that creates it, if any."""

    path: str
    imported: bool
    job_id: str | None = None

    @property
    def words(self) -> str:
        if self.job_id is not None:
            return f"job {self.job_id} imports it to {self.path}"
        return f"imported to {self.path}" if self.imported else f"already exists: {self.path}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def pull(
    image: str, site_name: str, runs_dir: Path | None, log: Callable[[str], None], *, in_job: bool = False
) -> Pulled:
    """Import `image` to the site's folder of images. Raises SiteError or SchedulerError."""
    parsed = parse_image(image)
    if parsed.path is not None:
        raise SiteError(f"{image}: is already a file; there is nothing to import")
    site = load_site(site_name)
    scheduler = scheduler_of(site)
    site = scheduler.capabilities(site, gpu=False, container=True).site
    if site.container.runtime == NO_RUNTIME:
        raise SiteError(f"site {site.name} has no container runtime; set one in a site profile (container.runtime)")
    folder = images_folder(site, RunsFolder(runs_folder(runs_dir, site)))
    wanted = image_cache.planned(parsed, site.container.runtime, folder)
    if wanted is None:
        raise SiteError(f"{site.container.runtime} does not import images; give a file as the image")
    if in_job and not wanted.target.exists():
        job_id = scheduler.submit_import(wanted, site)
        if job_id is None:
            raise SiteError(f"--job: site {site.name} has no scheduler; leave it out")
        return Pulled(str(wanted.target), False, job_id)
    return Pulled(str(wanted.target), image_cache.pull(wanted, log))
