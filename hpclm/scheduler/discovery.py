"""What a cluster or this machine offers, and whether a run fits: a job that cannot fit pends for ever, silently."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from hpclm.container import singularity
from hpclm.errors import SchedulerError
from hpclm.scheduler import client
from hpclm.scheduler.client import Partition
from hpclm.scheduler.jobs import StageJob
from hpclm.site import Site
from hpclm.site.profile import Runtime

# Packages a rank imports before anything else
ENGINE = ("torch", "megatron", "numpy", "safetensors", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Offer:
    """A site with what was found out about it.

    Attributes:
        partition: where jobs will go; None where no scheduler could be asked.
        trouble: why it could not be asked.
    """

    site: Site
    partition: Partition | None = None
    trouble: str | None = None


def discover(site: Site, *, gpu: bool, container: bool) -> Offer:
    """Fill in what the profile leaves open. Never raises: a dry run is made where there is no scheduler, too."""
    if site.scheduler == "local":
        return Offer(_with_runtime(site) if container else site)
    try:
        found = client.partitions()
    except SchedulerError as error:
        return Offer(site, None, str(error))
    wanted = site.partition
    chosen = next((one for one in found if (one.name == wanted if wanted else one.default)), None)
    if chosen is None:
        names = ", ".join(sorted(one.name for one in found)) or "none"
        what = f"partition {wanted!r} does not exist" if wanted else "the cluster has no default partition"
        return Offer(site, None, f"{what}; name one in the site profile (partitions: {names})")
    if site.cpus_per_device is None and gpu and chosen.cpus_per_node and chosen.gpus_per_node:
        site = dataclasses.replace(site, cpus_per_device=max(1, chosen.cpus_per_node // chosen.gpus_per_node))
    return Offer(_with_runtime(site) if container else site, chosen)


def _with_runtime(site: Site) -> Site:
    """The site with the container runtime that this machine has, where the profile names none."""
    if site.container.runtime != "none":
        return site
    return dataclasses.replace(site, container=dataclasses.replace(site.container, runtime=container_runtime()))


def container_runtime() -> Runtime:
    """The container runtime of this login node: Pyxis adds flags to srun, the others are programs."""
    try:
        if "--container-image" in client.run_command(["srun", "--help"]).out:
            return "pyxis"
    except SchedulerError:
        pass
    if shutil.which("enroot"):
        return "enroot"
    for program in ("apptainer", "singularity"):
        try:
            found = singularity.which(client.run_command([program, "--version"]).out)
        except SchedulerError:
            continue
        if found is not None:
            return "apptainer" if found == "apptainer" else "singularity"
    return "none"


def misfits(offer: Offer, jobs: Iterable[StageJob]) -> list[str]:
    """Everything that keeps these jobs from ever starting, each with what there is and what to change."""
    jobs = list(jobs)
    if any(job.python == (sys.executable,) and not job.in_container for job in jobs):
        return [*missing_engine(), *_site_misfits(offer, jobs)]
    return _site_misfits(offer, jobs)


def missing_engine() -> list[str]:
    """What the ranks need and this interpreter, which is to run them, does not have. Looks without importing."""
    missing = [name for name in ENGINE if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [
        f"{sys.executable}, which is to run the ranks, has no {', '.join(missing)}; install 'hpclm[engine]' there, "
        "name another interpreter as `python` in the site profile, or an image as container.image in the recipe"
    ]


def _site_misfits(offer: Offer, jobs: list[StageJob]) -> list[str]:
    if offer.site.scheduler == "local":
        return [problem for job in jobs for problem in _local_misfits(job)]
    if offer.trouble is not None:
        return [offer.trouble]
    return [problem for job in jobs for problem in _partition_misfits(offer, job)]


def _partition_misfits(offer: Offer, job: StageJob) -> Iterable[str]:
    partition = offer.partition
    assert partition is not None
    where = f"stage {job.stage}: "
    there = f"partition {partition.name} has"
    if not partition.up:
        yield f"{where}partition {partition.name} is not up"
    if job.nodes > partition.nodes:
        yield f"{where}{job.nodes} nodes asked for, {there} {partition.nodes}; lower --nodes"
    if job.device == "gpu" and offer.site.gpu_request != "none" and job.tasks_per_node > partition.gpus_per_node:
        yield (
            f"{where}{job.tasks_per_node} GPUs a node asked for, {there} {partition.gpus_per_node}; "
            "lower --devices-per-node or choose another partition"
        )
    cpus = job.tasks_per_node * job.cpus_per_task
    if partition.cpus_per_node is not None and cpus > partition.cpus_per_node:
        yield f"{where}{cpus} CPUs a node asked for, {there} {partition.cpus_per_node}; lower resources.cpus_per_device"
    memory = partition.memory_mib_per_node
    if job.memory_gib is not None and memory and job.memory_gib * 1024 > memory:
        yield f"{where}{job.memory_gib} GiB a node asked for, {there} {memory / 1024:.1f}; lower resources.memory_gib"


def _local_misfits(job: StageJob) -> Iterable[str]:
    if job.device != "gpu":
        return
    here = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if job.nodes > 1:
        yield f"stage {job.stage}: {job.nodes} nodes with GPUs asked for, this is one; use --site slurm or --nodes 1"
    elif job.tasks_per_node > here:
        yield (
            f"stage {job.stage}: {job.tasks_per_node} GPUs asked for, this machine has {here}; use --site slurm, "
            "lower --devices-per-node, or --set resources.device=cpu for a small model"
        )


def cpus_here() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
