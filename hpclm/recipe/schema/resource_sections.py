"""What a stage runs on, and how the model is split over it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpclm.core.parallel_spec import ParallelSpec, RankOrder
from hpclm.recipe.schema.base import Section

Degree = Annotated[int, Field(ge=1, le=1024)]


class Parallel(Section):
    """How the model is split. The remaining devices are used for data parallelism."""

    tensor: Degree = Field(default=1, description="devices that share each layer; keep them within a node")
    pipeline: Degree = Field(default=1, description="pipeline stages: consecutive groups of layers")
    sequence: bool = Field(
        default=False, description="sequence parallelism: norms and dropout split over the tensor ranks"
    )
    context: Degree = Field(default=1, description="context parallelism: devices that share each sequence (pretrain)")
    virtual_pipeline: Degree = Field(
        default=1, description="chunks of layers of each pipeline stage, run in turns to idle less (pretrain)"
    )
    first_stage_layers: Degree | None = Field(
        default=None, description="layers of the first pipeline stage; null: as many as the others"
    )
    last_stage_layers: Degree | None = Field(
        default=None, description="layers of the last pipeline stage; null: as many as the others"
    )
    account_for_embedding: bool = Field(
        default=False, description="the embedding counts as a layer of the first pipeline stage"
    )
    account_for_loss: bool = Field(
        default=False, description="the output layer counts as a layer of the last pipeline stage"
    )
    expert: Degree = Field(
        default=1, description="expert parallelism: devices that share the experts of each layer (pretrain)"
    )
    expert_tensor: Degree | None = Field(
        default=None, description="devices that share each expert; null: as many as tensor (pretrain)"
    )
    distributed_optimizer: bool = Field(
        default=False, description="optimizer state divided over data-parallel devices (ZeRO-1; pretrain)"
    )
    overlap: bool = Field(
        default=False,
        description="gradients are sent while the backward pass computes; with distributed_optimizer, weights while "
        "the forward pass does (pretrain)",
    )
    order: RankOrder = Field(
        default=ParallelSpec.order,
        description="which ranks are neighbours, after tensor: replicas of a stage, or with tp-cp-ep-pp-dp the stages "
        "of a replica (Megatron-LM's --use-tp-pp-dp-mapping)",
    )


class Resources(Section):
    """Nodes, devices, time and memory of a stage's job. One rank runs on each device."""

    nodes: Annotated[int, Field(ge=1, le=4096)] = Field(default=1, description="nodes; also `--nodes`")
    devices_per_node: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="GPUs (or, on cpu, ranks) per node; also `--devices-per-node`"
    )
    device: Literal["cpu", "gpu"] = Field(default="gpu", description="what a rank runs on")
    time_limit_min: Annotated[int, Field(ge=1, le=60 * 24 * 365)] = Field(
        default=60, description="minutes the stage may run in total, in as many jobs as the partition's limit requires"
    )
    job_time_limit_min: Annotated[int, Field(ge=1, le=60 * 24 * 365)] | None = Field(
        default=None, description="minutes of one job (short jobs start sooner); null: the partition's limit"
    )
    memory_gib: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        default=None, description="GiB of host memory per node; null: all of it"
    )
    cpus_per_device: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="CPU cores per rank; null: the site's default"
    )
