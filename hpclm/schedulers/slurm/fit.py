"""Whether a stage fits a partition: a job that cannot fit would stay pending for ever."""

from __future__ import annotations

from collections.abc import Iterable

from hpclm.core.gpu_types import gpu_type, precision_problem, too_large
from hpclm.schedulers.capabilities import Partition, SiteCapabilities
from hpclm.schedulers.jobs import StageJob


def partition_problems(capabilities: SiteCapabilities, job: StageJob) -> Iterable[str]:
    """Compared with the partition. Unknown facts are checked by the preflight."""
    partition = capabilities.partition
    assert partition is not None
    where = f"stage {job.stage}: "
    there = f"partition {partition.name} has"
    if not partition.up:
        yield f"{where}partition {partition.name} is not up"
    if job.nodes > partition.nodes:
        yield f"{where}{job.nodes} nodes needed, {there} {partition.nodes}; lower --nodes"
    if job.device == "gpu" and capabilities.site.gpu_request != "none" and job.tasks_per_node > partition.gpus_per_node:
        yield (
            f"{where}{job.tasks_per_node} GPUs per node needed, {there} {partition.gpus_per_node}; "
            "lower --devices-per-node or choose another partition"
        )
    if job.device == "gpu":
        yield from (where + problem for problem in _gpu_problems(partition, capabilities.site.gpu_type, job))
    cpus = job.tasks_per_node * job.cpus_per_task
    if partition.cpus_per_node is not None and cpus > partition.cpus_per_node:
        yield f"{where}{cpus} CPUs per node needed, {there} {partition.cpus_per_node}; lower resources.cpus_per_device"
    memory = partition.memory_mib_per_node
    if job.device == "cpu" and memory and job.node_memory_gib * 1024 > memory:
        yield (
            f"{where}its ranks need about {job.node_memory_gib:.0f} GiB per node, {there} {memory / 1024:.0f}; lower "
            "batch.micro or the sequence length, or use more nodes"
        )
    if job.memory_gib is not None and memory and job.memory_gib * 1024 > memory:
        yield f"{where}{job.memory_gib} GiB per node needed, {there} {memory / 1024:.1f}; lower resources.memory_gib"


def _gpu_problems(partition: Partition, wanted: str | None, job: StageJob) -> Iterable[str]:
    """Compared with the GPU types that the scheduler knows. Unknown facts are checked on the nodes."""
    types = dict(partition.gpu_types)
    if wanted is not None and partition.gpus_per_node:
        if wanted not in types:
            names = ", ".join(types) or "GPUs without a type"
            advice = (
                f"choose one of them as `gpu_type` in the site profile ({names})" if types else "leave gpu_type out"
            )
            yield f"GPUs of type {wanted} needed, partition {partition.name} has {names}; {advice}"
            return
        if types[wanted] < job.tasks_per_node:
            yield (
                f"{job.tasks_per_node} GPUs of type {wanted} per node needed, partition {partition.name} has "
                f"{types[wanted]}; lower --devices-per-node"
            )
        types = {wanted: types[wanted]}
    # Slurm may give the job any of these: only what fails on all of them is an error.
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
