"""A run resumed on another number of nodes or devices: its stages' specs and jobs for the new number.

Tensor, pipeline, context and expert parallel degrees stay, and so do the global and the micro-batch: what changes is
how many replicas share a step's micro-batches. Checkpoints can be read by any number of ranks.
"""

from __future__ import annotations

import dataclasses
from math import lcm
from typing import Any

from hpclm.core.corpus_spec import TokenizeStageSpec
from hpclm.core.errors import HpclmError
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.nearest import divisors, either
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.spec import BatchSpec, ProgramStageSpec, StageSpec
from hpclm.core.stage_specs import AnySpec, class_of
from hpclm.planning.task import task_named
from hpclm.runs.record import Run


def rescale(run: Run, stages: list[str], nodes: int | None, devices_per_node: int | None) -> Run:
    """The run with these stages on so many nodes of so many devices; what is None stays.

    Raises HpclmError where a stage cannot run on that many; then nothing was changed.
    """
    made = {name: _rescaled(_spec(run, name), nodes, devices_per_node) for name in stages}
    records = []
    for stage in run.record.stages:
        if stage.name in made:
            split = made[stage.name].parallel
            job = dataclasses.replace(
                stage.job, nodes=split.nodes, tasks_per_node=split.devices_per_node, device_memory_gib=None
            )
            stage = dataclasses.replace(stage, job=job)
        records.append(stage)
    for name, spec in made.items():
        write_sealed(run.paths.stage(name).spec, to_dict(spec))
    return run.save(dataclasses.replace(run.record, stages=tuple(records)))


def _spec(run: Run, name: str) -> AnySpec:
    path = run.paths.stage(name).spec
    raw: dict[str, Any] = read_sealed(path) or {}
    try:
        return from_dict(class_of(raw), raw)
    except ValueError as error:
        raise HpclmError(f"{path}: cannot be read ({error})") from None


def _rescaled(spec: AnySpec, nodes: int | None, devices_per_node: int | None) -> AnySpec:
    parallel = _split(spec, nodes or spec.parallel.nodes, devices_per_node or spec.parallel.devices_per_node)
    needs = dataclasses.replace(spec.needs, memory_bytes=None)  # that of another number
    if isinstance(spec, TokenizeStageSpec):
        return dataclasses.replace(spec, parallel=parallel, needs=needs)
    if isinstance(spec, ProgramStageSpec):
        raise HpclmError(f"stage {spec.stage} runs another program, whose arguments may name the ranks; submit it anew")
    batch = _batch(spec, parallel)
    if isinstance(spec, StageSpec):
        return dataclasses.replace(spec, parallel=parallel, batch=batch, needs=needs)
    sharding = spec.sharding
    size = sharding.group_size
    if size is not None and parallel.world_size % size:
        raise HpclmError(f"stage {spec.stage}: sharding.group_size {size} does not divide {parallel.world_size} ranks")
    if sharding.deepspeed:
        filled = {**sharding.deepspeed, "gradient_accumulation_steps": batch.gradient_accumulation_steps}
        sharding = dataclasses.replace(sharding, deepspeed=filled)
    return dataclasses.replace(spec, parallel=parallel, batch=batch, sharding=sharding, needs=needs)


def _split(spec: AnySpec, nodes: int, devices_per_node: int) -> ParallelSpec:
    old, world_size = spec.parallel, nodes * devices_per_node
    model = 1 if isinstance(spec, TokenizeStageSpec | FineTuneStageSpec) else old.tensor * old.pipeline * old.context
    if world_size % model:
        raise HpclmError(
            f"stage {spec.stage}: {world_size} devices are not a multiple of tensor {old.tensor} × pipeline "
            f"{old.pipeline} × context {old.context}, which a resumed run keeps; choose a multiple of {model}"
        )
    experts = old.expert * old.expert_tensor_size * old.pipeline
    if old.expert > 1 and world_size % experts:
        raise HpclmError(
            f"stage {spec.stage}: {world_size} devices are not a multiple of expert {old.expert} × expert_tensor "
            f"{old.expert_tensor_size} × pipeline {old.pipeline}, which a resumed run keeps; choose a multiple of "
            f"{lcm(model, experts)}"
        )
    return dataclasses.replace(
        old, data=world_size // model, world_size=world_size, nodes=nodes, devices_per_node=devices_per_node
    )


def _batch(spec: StageSpec | FineTuneStageSpec, parallel: ParallelSpec) -> BatchSpec:
    batch = spec.batch
    if task_named(spec.task).answers:
        return dataclasses.replace(batch, global_batch_size=batch.micro_batch_size * parallel.data)
    if batch.global_batch_size % (batch.micro_batch_size * parallel.data):
        replicas = [one for one in divisors(batch.global_batch_size // batch.micro_batch_size) if one <= 4096]
        model = parallel.world_size // parallel.data
        raise HpclmError(
            f"stage {spec.stage}: the global batch {batch.global_batch_size} of micro-batches of "
            f"{batch.micro_batch_size}, which a resumed run keeps, cannot be shared by {parallel.data} replicas; "
            f"choose {either([one * model for one in replicas])} devices in all"
        )
    steps = batch.global_batch_size // (batch.micro_batch_size * parallel.data)
    if parallel.virtual_pipeline > 1 and steps % parallel.pipeline:
        whole = batch.global_batch_size // batch.micro_batch_size
        replicas = [one for one in divisors(whole) if one <= 4096 and not whole // one % parallel.pipeline]
        model = parallel.world_size // parallel.data
        raise HpclmError(
            f"stage {spec.stage}: {parallel.data} replicas make {steps} micro-batches of a step, and the interleaved "
            f"schedule needs a multiple of pipeline {parallel.pipeline}; "
            f"choose {either([one * model for one in replicas])} devices in all"
        )
    return dataclasses.replace(batch, gradient_accumulation_steps=steps)
