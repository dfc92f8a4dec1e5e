"""Shapes of pre-training whose memory is estimated and traced, all in one process."""

from __future__ import annotations

import importlib
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpclm.core import spec as plan
from hpclm.core.parallel_spec import ParallelSpec, RecomputeSpec
from hpclm.core.records import from_dict, to_dict

GPT = plan.ModelSpec(12, 1024, 4096, 16, 16, 64, 2048, 50304, 50304)
LLAMA = plan.ModelSpec(
    16, 2048, 7168, 16, 4, 128, 8192, 64000, 64000, "rope", 500000.0, "rmsnorm", 1e-5, "swiglu", False, False
)
MIXTRAL = replace(LLAMA, num_layers=8, num_moe_experts=8)
UNIFORM, BLOCK = RecomputeSpec("full", "uniform", 1), RecomputeSpec("full", "block", 2)


def split(tensor: int = 1, pipeline: int = 1, data: int = 1, context: int = 1, **more: Any) -> ParallelSpec:
    size = tensor * pipeline * data * context
    nodes, each = max(1, size // 8), min(8, size)
    sequence = more.pop("sequence", False)
    return ParallelSpec(tensor, pipeline, data, size, nodes, each, sequence, context=context, **more)


def stage(
    model: plan.ModelSpec,
    parallel: ParallelSpec,
    micro: int,
    accumulation: int,
    length: int,
    recompute: RecomputeSpec | None = None,
    precision: Any = "bf16",
) -> plan.StageSpec:
    return plan.StageSpec(
        run="shapes", stage="pretrain", stage_dir="", task="pretrain", device="gpu", model=model,
        tokenizer=plan.TokenizerSpec("base"), parallel=parallel,
        batch=plan.BatchSpec(micro * parallel.data * accumulation, micro, accumulation),
        trainer=plan.TrainerSpec(precision, max_steps=10, recompute=recompute), optim=plan.OptimSpec(1e-4),
        checkpoint=plan.CheckpointSpec(), text=plan.TextData([], seq_length=length),
    )  # fmt: skip


def offloaded(spec: plan.StageSpec) -> plan.StageSpec:
    return replace(spec, optim=replace(spec.optim, offload=True))


ZERO = {"distributed_optimizer": True}
SHAPES = {
    "offloaded": offloaded(stage(GPT, split(), 4, 1, 1024)),
    "offloaded, fp32": offloaded(stage(GPT, split(), 4, 2, 1024, precision="fp32")),
    "offloaded, zero": offloaded(stage(GPT, split(2, data=4, overlap=True, **ZERO), 4, 1, 2048)),
    "one GPU": stage(GPT, split(), 4, 1, 1024),
    "one GPU, fp32": stage(GPT, split(), 4, 2, 1024, precision="fp32"),
    "one GPU, recomputed": stage(GPT, split(), 8, 1, 2048, UNIFORM),
    "one GPU, norms recomputed": stage(GPT, split(), 4, 1, 1024, RecomputeSpec("selective", modules=("layernorm",))),
    "one GPU, MLPs recomputed": stage(GPT, split(), 4, 1, 1024, RecomputeSpec("selective", modules=("mlp",))),
    "llama, norms recomputed": stage(LLAMA, split(), 1, 1, 4096, RecomputeSpec("selective", modules=("layernorm",))),
    "llama, fewer groups than ranks": stage(replace(LLAMA, num_query_groups=2), split(8, sequence=True), 1, 1, 8192),
    "llama, MLPs and norms recomputed": stage(
        LLAMA,
        split(2, sequence=True),
        1,
        1,
        8192,
        RecomputeSpec("selective", modules=("layernorm", "mlp")),
    ),
    "experts, recomputed": stage(
        MIXTRAL,
        split(data=8, expert=8),
        1,
        1,
        4096,
        RecomputeSpec("selective", modules=("layernorm", "moe")),
    ),
    "replicas": stage(GPT, split(data=8), 4, 2, 1024),
    "zero": stage(GPT, split(data=8, **ZERO), 4, 2, 1024),
    "zero, overlap": stage(GPT, split(data=8, overlap=True, **ZERO), 4, 2, 1024),
    "zero, fp32": stage(GPT, split(data=4, **ZERO), 2, 1, 2048, precision="fp32"),
    "tensor": stage(GPT, split(4), 4, 1, 2048),
    "tensor, sequence": stage(GPT, split(4, sequence=True), 4, 1, 2048),
    "tensor, sequence, recomputed": stage(GPT, split(2, sequence=True), 8, 1, 2048, UNIFORM),
    "tensor, zero": stage(GPT, split(2, data=4, **ZERO), 4, 1, 2048),
    "pipeline": stage(GPT, split(pipeline=4), 4, 8, 2048),
    "pipeline, few micro-batches": stage(GPT, split(pipeline=4), 4, 2, 2048),
    "pipeline, recomputed": stage(GPT, split(pipeline=4), 4, 8, 2048, UNIFORM),
    "uneven": stage(GPT, split(pipeline=4, first_stage_layers=2, last_stage_layers=2), 4, 8, 2048),
    "interleaved": stage(GPT, split(2, 4, virtual_pipeline=3), 4, 8, 2048),
    "interleaved, block": stage(GPT, split(pipeline=2, virtual_pipeline=2), 4, 8, 2048, BLOCK),
    "interleaved, zero": stage(GPT, split(pipeline=2, data=4, virtual_pipeline=3, **ZERO), 4, 4, 2048),
    "context": stage(GPT, split(context=4), 4, 1, 2048),
    "llama": stage(LLAMA, split(), 1, 1, 4096),
    "llama, fp32": stage(LLAMA, split(), 1, 1, 4096, precision="fp32"),
    "llama, fp32, tensor": stage(LLAMA, split(2), 1, 1, 8192, precision="fp32"),
    "groups, fp32": stage(replace(GPT, num_query_groups=4), split(), 4, 2, 1024, precision="fp32"),
    "llama, zero": stage(LLAMA, split(data=8, **ZERO), 1, 1, 4096),
    "llama, tensor, sequence": stage(LLAMA, split(4, sequence=True), 1, 2, 8192),
    "llama, context": stage(LLAMA, split(context=4), 1, 1, 16384),
    "llama, context, tensor, sequence": stage(LLAMA, split(2, context=4, sequence=True), 1, 1, 32768),
    "llama, context, zero": stage(LLAMA, split(context=2, data=2, **ZERO), 1, 2, 8192),
    "llama, interleaved": stage(LLAMA, split(2, 4, virtual_pipeline=2), 1, 8, 4096),
    "llama, interleaved, recomputed": stage(LLAMA, split(2, 4, virtual_pipeline=4), 1, 8, 4096, UNIFORM),
    "llama, pipeline, recomputed": stage(LLAMA, split(2, 4), 1, 8, 8192, UNIFORM),
    "llama, output as a layer": stage(
        replace(LLAMA, num_layers=15), split(pipeline=2, account_for_loss=True), 1, 4, 4096
    ),
    "llama, all of it": stage(
        LLAMA, split(2, 2, 2, 2, virtual_pipeline=2, sequence=True, overlap=True, **ZERO), 1, 4, 16384, UNIFORM
    ),
    "experts": stage(MIXTRAL, split(data=8, expert=8), 1, 1, 4096),
    "experts, zero": stage(MIXTRAL, split(data=8, expert=4, overlap=True, **ZERO), 1, 1, 4096),
    "experts, replicas": stage(replace(MIXTRAL, num_layers=4), split(data=2), 1, 1, 4096),
    "experts, tensor, sequence": stage(MIXTRAL, split(4, 1, 2, sequence=True, expert=2), 1, 1, 8192),
    "experts, not shared": stage(MIXTRAL, split(4, 1, 2, sequence=True, expert=8, expert_tensor=1, **ZERO), 1, 1, 8192),
    "experts, pipeline, recomputed": stage(MIXTRAL, split(1, 2, 4, expert=4, **ZERO), 1, 4, 8192, UNIFORM),
    "experts, interleaved, context": stage(
        MIXTRAL, split(1, 2, 2, 2, virtual_pipeline=2, expert=4, **ZERO), 1, 4, 16384
    ),
}


def write(answer: str) -> None:
    """For each shape and each pipeline stage of it, what the trace of its first rank says."""
    wanted = [
        (name, rank)
        for name, spec in SHAPES.items()
        for rank in range(0, spec.parallel.world_size, spec.parallel.world_size // spec.parallel.pipeline)
    ]
    importlib.import_module("torch._dynamo")  # which FakeTensors need, and which takes most of a second
    # tensors without bytes stay in caches, so that a process can trace once
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        traced = pool.starmap(_traced, wanted, chunksize=1)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SHAPES}
    for (name, _), one in zip(wanted, traced, strict=True):
        found[name].append(one)
    Path(answer).write_text(json.dumps(found))


def _traced(name: str, rank: int) -> dict[str, Any]:
    from hpclm.engines.megatron.ranks import trace

    return to_dict(trace.trace(from_dict(plan.StageSpec, to_dict(SHAPES[name])), rank))
