"""What a cluster or this machine offers, and whether a run fits: a job that cannot fit pends for ever, silently."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from hpclm.containers import singularity
from hpclm.core.errors import SchedulerError
from hpclm.core.gpu_types import gpu_type, precision_problem
from hpclm.core.site import Runtime, Site
from hpclm.nodes.gpu_checks import too_large
from hpclm.schedulers.jobs import StageJob
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.client import Partition

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
    if job.device == "gpu":
        yield from (where + problem for problem in _gpu_misfits(partition, offer.site.gpu_type, job))
    cpus = job.tasks_per_node * job.cpus_per_task
    if partition.cpus_per_node is not None and cpus > partition.cpus_per_node:
        yield f"{where}{cpus} CPUs a node asked for, {there} {partition.cpus_per_node}; lower resources.cpus_per_device"
    memory = partition.memory_mib_per_node
    if job.memory_gib is not None and memory and job.memory_gib * 1024 > memory:
        yield f"{where}{job.memory_gib} GiB a node asked for, {there} {memory / 1024:.1f}; lower resources.memory_gib"


def _gpu_misfits(partition: Partition, wanted: str | None, job: StageJob) -> Iterable[str]:
    """Against the types that the scheduler knows. What it does not know is left to the check on the nodes."""
    types = dict(partition.gpu_types)
    if wanted is not None and partition.gpus_per_node:
        if wanted not in types:
            names = ", ".join(types) or "GPUs without a type"
            advice = (
                f"choose one of them as `gpu_type` in the site profile ({names})" if types else "leave gpu_type out"
            )
            yield f"GPUs of type {wanted} asked for, partition {partition.name} has {names}; {advice}"
            return
        if types[wanted] < job.tasks_per_node:
            yield (
                f"{job.tasks_per_node} GPUs of type {wanted} a node asked for, partition {partition.name} has "
                f"{types[wanted]}; lower --devices-per-node"
            )
        types = {wanted: types[wanted]}
    # Slurm may give the job any of these: only what fails on all of them is certain.
    fitting = [name for name, count in types.items() if count >= job.tasks_per_node]
    known = [one for name in fitting if (one := gpu_type(name)) is not None]
    if not known or len(known) < len(fitting):
        return
    if job.precision is not None:
        best = max(known, key=lambda one: one.capability)
        if problem := precision_problem(job.precision, best.capability, f"{best.name} of {partition.name}"):
            yield problem
    largest = max(known, key=lambda one: one.memory_gib[-1])
    room = largest.memory_gib[-1]
    if job.device_memory_gib is not None and job.device_memory_gib > room:
        yield too_large(job.device_memory_gib * 1024, room * 1024, f"{largest.name} of {partition.name}")


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
