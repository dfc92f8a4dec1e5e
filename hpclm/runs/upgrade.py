"""Runs that an earlier version made: resumed with today's code, since their own code needs the earlier launcher.

Checkpoints, data and records are the same, so a stage continues where it was. What changes is the code its ranks run
(the payload) and what its spec says of it.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from typing import Any

from hpclm.core.errors import HpclmError
from hpclm.core.files import read_object
from hpclm.core.payload import stage_payload
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import write_sealed
from hpclm.core.spec import SPEC_VERSION, NodeNeeds, StageSpec
from hpclm.core.stage_inputs import stage_inputs
from hpclm.core.stage_specs import AnySpec, class_of
from hpclm.planning.engine_protocol import engine_named
from hpclm.planning.megatron_memory import memory
from hpclm.planning.task import task_named
from hpclm.runs.record import VERSION, Run


def upgrade(run: Run) -> Run:
    """The run with today's code and specs; unchanged if it has them already. No stage may be running.

    Raises HpclmError where a spec cannot be read; then nothing was changed.
    """
    if run.record.version == VERSION:
        return run
    specs = {stage.name: _upgraded(run, stage.name) for stage in run.record.stages}
    fresh = run.paths.root / f".payload-{time.time_ns()}"
    stage_payload(fresh)
    for name, spec in specs.items():
        write_sealed(run.paths.stage(name).spec, to_dict(spec))
    old = run.paths.root / f".payload-of-version-{run.record.version}"
    shutil.rmtree(old, ignore_errors=True)
    run.payload.rename(old)
    fresh.rename(run.payload)
    stages = tuple(
        dataclasses.replace(stage, job=dataclasses.replace(stage.job, packages=tuple(specs[stage.name].needs.packages)))
        for stage in run.record.stages
    )
    return run.save(dataclasses.replace(run.record, stages=stages, version=VERSION))


def _upgraded(run: Run, stage: str) -> AnySpec:
    path = run.paths.stage(stage).spec
    raw: dict[str, Any] = {**(read_object(path) or {}), "spec_version": SPEC_VERSION}
    try:
        spec = from_dict(class_of(raw), raw)
    except ValueError as error:
        raise HpclmError(
            f"{path}: cannot be read by this version of hpclm ({error}); start a new run from its checkpoints "
            "(model.checkpoint)"
        ) from None
    if not isinstance(spec, StageSpec):
        return spec
    estimate = memory(spec)
    read = stage_inputs(
        roles=task_named(spec.task).roles,
        data=spec.data,
        text=spec.text,
        indexed=spec.indexed,
        tokenizer=spec.tokenizer,
    )
    needs = NodeNeeds(
        packages=list(engine_named(spec.engine).packages),
        memory_bytes=estimate.total if estimate else None,
        precision=spec.trainer.precision,
        inputs=[one.path for one in read],
    )
    return dataclasses.replace(spec, needs=needs)
