"""From a plan and a site to jobs. Pure, except for the number of this machine's CPUs and a container runtime's
answers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpclm.containers import ContainerRequest, LaunchSpec, launch_spec, parse_image
from hpclm.containers.image_cache import Import, planned
from hpclm.containers.runtime import runtime
from hpclm.core.layout import RunPaths
from hpclm.core.site import NO_RUNTIME, Site
from hpclm.core.sweep_layout import RunsFolder
from hpclm.runs.mounts import mounts_of
from hpclm.schedulers.capabilities import SiteCapabilities
from hpclm.schedulers.commands import output_of
from hpclm.schedulers.interface import scheduler_of
from hpclm.schedulers.jobs import StageJob

if TYPE_CHECKING:
    from hpclm.planning import StagePlan
    from hpclm.planning.plan import ResourcePlan

# Longer than the checks, which take a second: the first step of a job may have to copy the image to the node.
_PREFLIGHT_S = 600


@dataclass(frozen=True)
class JobBuilder:
    """Makes the jobs of a run.

    Attributes:
        payload: folder of the code that the ranks run.
        folder: the runs folder, which contains the bad-node list; the images are next to it.
        exclude: nodes to exclude.
    """

    capabilities: SiteCapabilities
    paths: RunPaths
    payload: Path
    title: str
    folder: RunsFolder
    exclude: tuple[str, ...] = ()

    @property
    def site(self) -> Site:
        return self.capabilities.site

    def jobs(self, stages: Sequence[StagePlan]) -> tuple[list[StageJob], list[str]]:
        """The jobs in order, and why they could not be started as they are (one message each)."""
        problems = [problem for stage in stages for problem in _image_problems(stage, self.site, self.folder)]
        return [self._job(stage) for stage in stages], problems

    def _job(self, stage: StagePlan) -> StageJob:
        site, resources = self.site, stage.resources
        contained = stage.container is not None and runtime_of(stage, site) != NO_RUNTIME
        cpus = resources.cpus_per_device or site.cpus_per_device or 1
        environment = _environment(stage, site, self.paths, cpus)
        launch = LaunchSpec(python=(sys.executable,))
        if contained:
            launch = _launch(stage, site, self.paths, self.payload, self.folder, environment)
        preflight = stage.recovery.preflight and scheduler_of(site).runs_preflight
        return StageJob(
            run=self.paths.name,
            stage=stage.name,
            submit=1,
            title=self.title,
            stage_dir=str(self.paths.stage(stage.name).root),
            payload=str(self.payload),
            device="gpu" if resources.device == "gpu" else "cpu",
            nodes=resources.nodes,
            tasks_per_node=resources.devices_per_node,
            cpus_per_task=cpus,
            memory_gib=resources.memory_gib,
            time_limit_min=_job_minutes(resources, self.capabilities),
            total_time_min=resources.time_limit_min,
            launch=launch,
            python=site.python or launch.python,
            in_container=contained,
            environment=environment,
            depends_on=tuple(stage.depends_on),
            preflight_s=_PREFLIGHT_S if preflight else 0,
            bad_node_list=str(self.folder.bad_nodes),
            exclude=self.exclude,
            precision=stage.spec.needs.precision if stage.spec else None,
            device_memory_gib=stage.memory.total / (1 << 30) if stage.memory else None,
            packages=tuple(stage.spec.needs.packages) if stage.spec else (),
        )


def _job_minutes(resources: ResourcePlan, capabilities: SiteCapabilities) -> int:
    """The time limit of one job: what is requested, or less if the partition allows
    less; the stage continues in the next job."""
    partition = capabilities.partition.time_limit_min if capabilities.partition else None
    limits = (resources.time_limit_min, resources.job_time_limit_min, partition)
    return min(limit for limit in limits if limit is not None)


def _environment(stage: StagePlan, site: Site, paths: RunPaths, cpus: int) -> dict[str, str]:
    resources = stage.resources
    ranks = resources.nodes * resources.devices_per_node
    threads = scheduler_of(site).threads(resources.cpus_per_device, cpus, ranks)
    environment = {"OMP_NUM_THREADS": str(threads)}
    if stage.resources.device == "gpu":
        # A Triton cache in a shared home folder would make ranks race for it.
        environment["TRITON_CACHE_DIR"] = f"/tmp/hpclm-triton-{paths.name}"
    return environment


def runtime_of(stage: StagePlan, site: Site) -> str:
    """How this stage starts its container: as the recipe says, else as the site does."""
    return (stage.container.runtime if stage.container else None) or site.container.runtime


def images_folder(site: Site, runs: RunsFolder) -> Path:
    """The folder of imported images: the site's folder, else `images` next to the runs."""
    return Path(site.container.images) if site.container.images else runs.images


def import_of(stage: StagePlan, site: Site, runs: RunsFolder) -> Import | None:
    """What has to be imported before this stage can start, None where nothing has.

    A runtime that imports by itself does so on every node and every time; where its
    program is available, once is enough.
    """
    if stage.container is None or runtime_of(stage, site) == NO_RUNTIME:
        return None
    name = runtime_of(stage, site)
    wanted = planned(parse_image(stage.container.image), name, images_folder(site, runs))
    if wanted is None or wanted.target.exists():
        return wanted
    itself = runtime(name).imports_itself and site.container.pull == "login" and shutil.which(wanted.program) is None
    return None if itself or site.container.pull == "never" else wanted


def _file_of(stage: StagePlan, site: Site, runs: RunsFolder) -> Import | None:
    """The image file that a stage starts, existing or not; None if the runtime imports by itself, and for a path."""
    assert stage.container is not None
    name = runtime_of(stage, site)
    if runtime(name).imports_itself:
        return import_of(stage, site, runs)
    return planned(parse_image(stage.container.image), name, images_folder(site, runs))


def _image_problems(stage: StagePlan, site: Site, runs: RunsFolder) -> list[str]:
    """Why a stage cannot start its image: no runtime, or a missing file that is not imported automatically."""
    if stage.container is None:
        return []
    if runtime_of(stage, site) == NO_RUNTIME:
        return [
            f"stage {stage.name}: the recipe asks for the image {stage.container.image!r}, and site {site.name} has no "
            "container runtime; set one in a site profile (container.runtime), or leave the image out with --set "
            "container=null"
        ]
    wanted = _file_of(stage, site, runs)
    if site.container.pull != "never" or wanted is None or wanted.target.exists():
        return []
    return [
        f"stage {stage.name}: {stage.container.image} is not imported ({wanted.target} does not exist), and site "
        f"{site.name} sets container.pull: never; import it with `hpclm image pull {stage.container.image}`"
    ]


def _launch(
    stage: StagePlan, site: Site, paths: RunPaths, payload: Path, folder: RunsFolder, environment: dict[str, str]
) -> LaunchSpec:
    container = stage.container
    assert container is not None
    wanted = _file_of(stage, site, folder)
    request = ContainerRequest(
        image=str(wanted.target) if wanted else container.image,
        mounts=mounts_of(stage, site, paths.root, payload),
        workdir=container.workdir or str(paths.stage(stage.name).root),
        environment=_inside(site.environment | environment, container.environment, str(payload)),
        gpu=stage.resources.device == "gpu",
        writable=container.writable,
        home=site.container.home if container.home is None else container.home,
        passed=scheduler_of(site).rank_variables,
        secrets=tuple(sorted(site.secrets)),
        probe=output_of,
    )
    return launch_spec(runtime_of(stage, site), request)


def _inside(ours: dict[str, str], recipes: dict[str, str], payload: str) -> dict[str, str]:
    """Variables that override the image's own. No PYTHONPATH may hide the payload."""
    inside = {**ours, "PYTHONNOUSERSITE": "1", **recipes}
    return inside | {"PYTHONPATH": ":".join(filter(None, [payload, inside.get("PYTHONPATH")]))}
