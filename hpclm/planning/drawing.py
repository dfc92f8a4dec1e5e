"""The plan as text: nodes, the ranks on them, and each rank's part."""

from __future__ import annotations

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import BatchSpec, StageSpec
from hpclm.planning.memory_estimate import GIB, MemoryEstimate
from hpclm.planning.plan import Plan, StagePlan
from hpclm.planning.task import task_named
from hpclm.planning.topology import RankPlace

# Nodes drawn one by one; if there are more, only the first and the last few.
_MAX_NODES = 8
_MAX_DEVICES = 16
_WIDTH = 100


def picture(plan: Plan) -> str:
    """Plain text of about 100 columns; without the findings."""
    blocks = [f"{plan.name}   {plan.recipe}"]
    drawn: dict[ParallelSpec | None, str] = {}
    for stage in plan.stages:
        # Stages usually share a split: its nodes are drawn once.
        twin = drawn.setdefault(stage.parallel, stage.name)
        blocks.append(_stage(stage, twin))
    return "\n\n".join(blocks) + "\n"


def _stage(stage: StagePlan, twin: str) -> str:
    """A stage's facts and its nodes. `twin`: the first stage with the same split."""
    resources = stage.resources
    after = f"   after {' and '.join(stage.depends_on)}" if stage.depends_on else ""
    lines = [f"stage {stage.name}   {stage.task}{after}"]
    devices = f"{resources.devices_per_node} {resources.device}{'s' if resources.devices_per_node > 1 else ''}"
    nodes = f"{resources.nodes} node{'s' if resources.nodes > 1 else ''} × {devices}"
    split = stage.parallel
    if split is None:
        return "\n".join([*lines, f"  {nodes}: cannot be split as requested"])
    ranks = f"{split.world_size} rank{'s' if split.world_size > 1 else ''}"
    lines.append(
        f"  {nodes} = {ranks} = tensor {split.tensor} × pipeline {split.pipeline} × data {split.data}"
        + (f" × context {split.context}" if split.context > 1 else "")
        + (", sequence parallel" if split.sequence_parallel else "")
        + (f", in the order {split.order}" if split.order != ParallelSpec.order else "")
    )
    if split.expert > 1:
        lines.append(
            f"  experts: {ranks} = expert {split.expert} × expert tensor {split.expert_tensor_size} × pipeline "
            f"{split.pipeline} × data {split.expert_data}"
        )
    lines += _batch(stage)
    if stage.memory is not None:
        lines += _memory(stage.memory)
    lines.append(f"  time limit {resources.time_limit_min} min")
    if stage.container is not None:
        lines.append(f"  container {stage.container.image}")
    if twin != stage.name:
        return "\n".join([*lines, f"  ranks as in stage {twin}"])
    return "\n".join([*lines, "", *_nodes(stage)])


def _batch(stage: StagePlan) -> list[str]:
    if not isinstance(stage.spec, StageSpec | FineTuneStageSpec) or stage.parallel is None:
        return []
    batch = stage.spec.batch
    if task_named(stage.task).answers:
        replicas = "on one replica" if stage.parallel.data == 1 else f"on each of {stage.parallel.data} replicas"
        return [f"  {batch.micro_batch_size} prompts at once {replicas}"]
    steps = f", {stage.total_steps} steps" if stage.total_steps else ""
    return [
        *_tuning(stage.spec),
        f"  batch {batch.global_batch_size} = micro {batch.micro_batch_size} × data {stage.parallel.data} × "
        f"accumulation {batch.gradient_accumulation_steps}{steps}" + _growth(batch),
    ]


def _tuning(spec: StageSpec | FineTuneStageSpec) -> list[str]:
    """Engine hf's: what is trained, and what is divided over which ranks."""
    if not isinstance(spec, FineTuneStageSpec):
        return []
    sharding, ranks = spec.sharding, spec.parallel.world_size
    divided = f"{sharding.strategy} over {ranks} rank{'s' if ranks > 1 else ''}"
    if sharding.group_size is not None and sharding.group_size < ranks:
        divided += f" in groups of {sharding.group_size}"
    offloaded = {"none": "", "optimizer": ", the optimizer offloaded", "all": ", all offloaded"}[sharding.offload]
    again = ", activations computed again" if sharding.checkpointing else ""
    return [f"  {spec.method.method} by {spec.optim.name}, {divided}{offloaded}{again}"]


def _growth(batch: BatchSpec) -> str:
    grows = batch.rampup
    return "" if grows is None else f"; from {grows.start} by {grows.increment} over {grows.samples:,} samples"


def _memory(memory: MemoryEstimate) -> list[str]:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
    }
    words = ", ".join(f"{name} {size_text(size)}" for name, size in parts.items() if size)
    trained = f", {_count(memory.trainable_parameters)} of them trainable" if memory.trainable_parameters else ""
    return [
        f"  {_count(memory.parameters)} parameters{trained}",
        f"  about {size_text(memory.total)} per rank: {words}",
    ]


def size_text(size: int) -> str:
    """`1.5 GiB`, or `12 MiB` below one."""
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{max(1, round(size / (1 << 20)))} MiB"


def _count(number: int) -> str:
    for unit, word in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.1f}{word}"
    return str(number)


def _nodes(stage: StagePlan) -> list[str]:
    """A row of cells for each node: rank above its coordinates."""
    topology = stage.topology
    assert topology is not None
    lines = []
    # The last rank has the longest numbers.
    width = max(len(text) for text in _cell(topology.place(topology.world_size - 1), stage)) + 2
    for node in _shown(topology.nodes, _MAX_NODES):
        if node is None:
            lines.append("  …")
            continue
        first = node * topology.devices_per_node
        cells = [
            _cell(None if local is None else topology.place(first + local), stage)
            for local in _shown(topology.devices_per_node, _MAX_DEVICES)
        ]
        lines += _rows(f"node {node}", cells, width)
    return [*lines, _legend(stage)]


def _shown(count: int, limit: int) -> list[int | None]:
    """Indices to draw; None marks those left out."""
    if count <= limit:
        return list(range(count))
    return [*range(limit - 2), None, count - 1]


def _cell(place: RankPlace | None, stage: StagePlan) -> tuple[str, str]:
    if place is None:
        return "…", "…"
    assert stage.parallel is not None
    parts = [f"t{place.tensor}"]
    parts += [f"p{place.pipeline}"] if stage.parallel.pipeline > 1 else []
    parts += [f"c{place.context}"] if stage.parallel.context > 1 else []
    parts += [f"d{place.data}"] if stage.parallel.data > 1 else []
    return f"rank {place.rank}", " ".join(parts)


def _rows(label: str, cells: list[tuple[str, str]], width: int) -> list[str]:
    lines = []
    for start in range(0, len(cells), _per_line(width)):
        chunk = cells[start : start + _per_line(width)]
        bar = "+".join("-" * width for _ in chunk)
        name = label if start == 0 else ""
        lines += [
            f"  {'':9}+{bar}+",
            f"  {name:9}|{'|'.join(f'{top:^{width}}' for top, _ in chunk)}|",
            f"  {'':9}|{'|'.join(f'{bottom:^{width}}' for _, bottom in chunk)}|",
            f"  {'':9}+{bar}+",
        ]
    return lines


def _per_line(width: int) -> int:
    return max(1, (_WIDTH - 12) // (width + 1))


def _legend(stage: StagePlan) -> str:
    split = stage.parallel
    assert split is not None
    parts = (
        [f"t: part {'of' if split.tensor == 1 else 'of each layer,'} 0–{split.tensor - 1}"] if split.tensor > 1 else []
    )
    if not parts:
        parts = ["t0: whole layers"]
    if split.pipeline > 1:
        parts.append(f"p: pipeline stage, 0–{split.pipeline - 1}")
    if split.data > 1:
        parts.append(f"d: replica, 0–{split.data - 1}")
    if split.context > 1:
        parts.append(f"c: part of each sequence, 0–{split.context - 1}")
    return f"  ({'; '.join(parts)})"
