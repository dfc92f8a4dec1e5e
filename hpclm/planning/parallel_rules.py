"""Rules for the keys of `parallel`, each a finding with value, rule and the nearest valid values.

Sources: Megatron-LM megatron/training/arguments.py (validate_args), megatron/core/transformer/transformer_config.py and
transformer_block.py, megatron/core/pipeline_parallel/schedules.py.
"""

from __future__ import annotations

from math import lcm

from hpclm.core.nearest import closest, divisors, either, multiples
from hpclm.core.spec import ModelSpec
from hpclm.planning import expert_rules, lowering
from hpclm.planning.layer_split import layers_by_stage, split_problem
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology

# What pre-training has and nothing else.
ADVANCED = (
    "context",
    "virtual_pipeline",
    "first_stage_layers",
    "last_stage_layers",
    "account_for_embedding",
    "account_for_loss",
    "expert",
    "expert_tensor",
    "distributed_optimizer",
    "overlap",
    "order",
)
# Where the layers are.
LAYERS = ("first_stage_layers", "last_stage_layers", "account_for_embedding", "account_for_loss")
# Where layers and ranks are, which matters to no task.
PLACES = (*LAYERS, "order")


def split_devices(stage: StageContext) -> Topology | None:
    """devices % (TP·CP·PP) == 0, and tensor groups within one node."""
    parallel, resources = stage.recipe.parallel, stage.recipe.resources
    context = parallel.context
    model_size = parallel.tensor * parallel.pipeline * context
    world = resources.nodes * resources.devices_per_node
    if world % model_size:
        fitting = [d for d in range(1, 65) if resources.nodes * d % model_size == 0]
        choices = closest(fitting, resources.devices_per_node, 2)
        nodes = [n for n in range(1, 4097) if n * resources.devices_per_node % model_size == 0]
        hints = [f"devices_per_node {either(choices)}"] if choices else []
        hints += [f"nodes {either(closest(nodes, resources.nodes, 2))}"] if nodes else []
        splits = [t for t in divisors(world) if world % (t * parallel.pipeline * context) == 0]
        hints += [f"tensor {either(closest(splits, parallel.tensor))}"] if splits else []
        reason = ", the evaluation too" if stage.task.answers else ""
        stage.error(
            ("resources", "devices_per_node"),
            f"{resources.nodes} × {resources.devices_per_node} = {world} devices are not a multiple of "
            f"tensor {parallel.tensor} × pipeline {parallel.pipeline}"
            f"{f' × context {context}' if context > 1 else ''} = {model_size}{reason}; "
            f"choose {', or '.join(hints)}",
            "devices % (tensor · pipeline) == 0",
            world,
            multiples(model_size, world),
        )
        return None
    devices = resources.nodes, resources.devices_per_node
    topology = Topology(parallel.tensor, parallel.pipeline, *devices, context, parallel.order)
    _tensor_within_node(stage, topology)
    if stage.task.answers and topology.data > 1 and stage.recipe.engine != "hf":
        stage.info(
            ("resources", "devices_per_node"),
            f"the test rows are shared by {topology.data} replicas of the model "
            f"(NeMo's own evaluation: one, on exactly {model_size})",
            "evaluation devices % (tensor · pipeline) == 0",
            world,
        )
    return topology


def _tensor_within_node(stage: StageContext, topology: Topology) -> None:
    across = topology.tensor_groups_across_nodes()
    if across:
        choices = closest(divisors(topology.devices_per_node), topology.tensor)
        stage.warning(
            ("parallel", "tensor"),
            f"{across} of {topology.world_size // topology.tensor} tensor groups of {topology.tensor} reach over nodes "
            f"(of {topology.devices_per_node} devices), which is slow; choose {either(choices)}, or larger nodes",
            "tensor group within one node",
            topology.tensor,
            choices,
        )


def split_model(stage: StageContext, model: ModelSpec) -> None:
    """Heads, key/value groups, MLP and vocabulary by TP."""
    tensor = stage.recipe.parallel.tensor
    _divides(stage, ("parallel", "tensor"), tensor, "num_attention_heads", model.num_attention_heads)
    if model.num_moe_experts is None:
        _divides(stage, ("parallel", "tensor"), tensor, "ffn_hidden_size", model.ffn_hidden_size)
    expert_rules.check(stage, model)
    _divides(stage, ("parallel", "tensor"), tensor, "padded_vocab_size", model.padded_vocab_size)
    groups = model.num_query_groups
    if groups % tensor and tensor % groups:
        choices = closest([t for t in range(1, 1025) if groups % t == 0 or t % groups == 0], tensor)
        stage.error(
            ("parallel", "tensor"),
            f"{tensor} neither divides num_query_groups {groups} nor is a multiple of it; choose {either(choices)}",
            "num_query_groups % tensor == 0 or tensor % num_query_groups == 0",
            tensor,
            choices,
        )
    elif 2 * groups * model.kv_channels % tensor:
        fitting = [t for t in range(1, tensor) if not 2 * groups * model.kv_channels % t and not tensor % t]
        choices = closest(fitting, tensor)
        stage.error(
            ("parallel", "tensor"),
            f"{tensor} does not divide the width of keys and values, 2 · {groups} groups · {model.kv_channels}; "
            f"choose {either(choices)}",
            "2 · num_query_groups · kv_channels % tensor == 0",
            tensor,
            choices,
        )


def stages(stage: StageContext, model: ModelSpec, accumulation: int | None) -> None:
    """Layers by PP and by chunk of the interleaved schedule (transformer_config.py, __post_init__;
    transformer_block.py, get_num_layers_to_build; schedules.py, forward_backward_pipelining_with_interleaving).

    Args:
        accumulation: micro-batches of a rank in a step, None where that is unknown.
    """
    parallel = stage.recipe.parallel
    problem = split_problem(model.num_layers, parallel)
    if problem is not None and problem.key == "pipeline" and parallel.pipeline > 1:
        _divides(stage, ("parallel", "pipeline"), parallel.pipeline, "num_layers", model.num_layers)
    elif problem is not None:
        stage.error(("parallel", problem.key), problem.what, problem.rule, getattr(parallel, problem.key))
    for key in ("account_for_embedding", "account_for_loss") if parallel.pipeline == 1 else ():
        if getattr(parallel, key) and problem is None:
            _without_effect(stage, key, "evens out pipeline stages, and there is one", "pipeline > 1")
    if parallel.virtual_pipeline == 1 or parallel.pipeline == 1:
        return
    batch = stage.recipe.batch
    if accumulation is not None and accumulation % parallel.pipeline and batch is not None:
        choices = multiples(batch.global_size // accumulation * parallel.pipeline, batch.global_size)
        stage.error(
            ("batch", "global"),
            f"{batch.global_size} makes {accumulation} micro-batches, and the interleaved schedule needs a multiple of "
            f"pipeline {parallel.pipeline}; choose {either(choices)}",
            "micro-batches % pipeline == 0",
            batch.global_size,
            choices,
        )
    if accumulation is None or batch is None or batch.rampup is None:
        return
    unit = batch.global_size // accumulation * parallel.pipeline
    for key in ("start", "increment"):
        value = getattr(batch.rampup, key)
        if value % unit:
            choices = multiples(unit, value)
            what = (
                f"{value} is not a multiple of micro × data parallel × pipeline = {unit}, as the interleaved schedule "
            )
            what += f"needs; choose {either(choices)}"
            stage.error(("batch", "rampup", key), what, "rampup % (micro · data · pipeline) == 0", value, choices)


def recompute(stage: StageContext, model: ModelSpec) -> None:
    """Whole groups of layers in each chunk (transformer_block.py, _checkpointed_forward, fails on a part of one), and
    modules that the model has."""
    wanted, parallel = lowering.trainer(stage).recompute, stage.recipe.parallel
    absent, instead = ("moe", "mlp") if model.num_moe_experts is None else ("mlp", "moe")
    if wanted is not None and absent in wanted.recomputed:
        kind = "no experts" if absent == "moe" else "experts in place of an MLP"
        modules = sorted((wanted.recomputed - {absent}) | {instead})
        stage.error(
            ("trainer", "recompute", "modules"),
            f"{absent} is not in this model's layers, which have {kind}; choose {', '.join(modules)}",
            "modules are in the model",
            list(wanted.modules or ()),
            (modules,),
        )
    if wanted is None or wanted.method != "uniform" or not wanted.num_layers:
        return
    if split_problem(model.num_layers, parallel) is not None:
        return
    chunks = sorted({count for stage_ in layers_by_stage(model.num_layers, parallel) for count in stage_ if count})
    wrong = next((count for count in chunks if count % (wanted.num_layers or 1)), None)
    if wrong is None:
        return
    choices = closest([one for one in divisors(wrong) if not any(count % one for count in chunks)], wanted.num_layers)
    stage.error(
        ("trainer", "recompute", "num_layers"),
        f"{wanted.num_layers} does not divide the {wrong} layers of a pipeline stage"
        f"{'' if parallel.virtual_pipeline == 1 else chr(39) + 's chunk'}; choose {either(choices)}",
        "layers of a stage % recompute.num_layers == 0",
        wanted.num_layers,
        choices,
    )


def only_plain(stage: StageContext, *, who: str, allowed: tuple[str, ...] = ()) -> None:
    """Refuse keys of `parallel` that are for pre-training by Megatron.

    Args:
        who: has none of them, as in "engine hf".
    """
    parallel = stage.recipe.parallel
    for key in ADVANCED:
        value, default = getattr(parallel, key), type(parallel).model_fields[key].default
        if value != default and key not in allowed:
            what = f"is for pretrain by engine megatron or megatron-lm, and {who} has it not; leave it out"
            stage.error(("parallel", key), what, "keys of pre-training", value, (default,))


def _without_effect(stage: StageContext, key: str, why: str, rule: str) -> None:
    """No error, as in Megatron-LM: a sweep of `tensor` or `pipeline` begins at 1."""
    stage.warning(("parallel", key), f"has no effect: it {why}", rule, True, (False,))


def context_parallel(stage: StageContext, seq_length: int | None, keys: tuple[str, ...]) -> None:
    """Each rank has two chunks of each sequence (arguments.py: seq_length % (2 · context))."""
    parallel = stage.recipe.parallel
    each = 2 * parallel.context
    if parallel.context > 1 and seq_length is not None and seq_length % each:
        choices = multiples(each, seq_length)
        stage.error(
            keys,
            f"{seq_length} is not a multiple of 2 × context {parallel.context} = {each}; choose {either(choices)}",
            "sequence length % (2 · context) == 0",
            seq_length,
            choices,
        )


def _divides(stage: StageContext, keys: tuple[str, ...], degree: int, name: str, number: int) -> None:
    if number % degree:
        # For a large number, only the divisors near the given value.
        choices = closest([d for d in divisors(number) if d <= max(8, 4 * degree)], degree)
        stage.error(
            keys,
            f"{degree} does not divide {name} {number}; choose {either(choices)}",
            f"{name} % {keys[-1]} == 0",
            degree,
            choices,
        )


def sequence_parallel(stage: StageContext, seq_length: int | None, keys: tuple[str, ...]) -> None:
    """Sequence parallelism needs TP > 1 and seq % TP == 0 (Megatron fails on the second only while running)."""
    parallel = stage.recipe.parallel
    if not parallel.sequence:
        return
    if parallel.tensor == 1:
        _without_effect(stage, "sequence", "splits over tensor ranks, and there is one", "sequence needs tensor > 1")
        return
    each = parallel.tensor * parallel.context
    if seq_length is not None and seq_length % each:
        choices = multiples(each if parallel.context == 1 else lcm(each, 2 * parallel.context), seq_length)
        context = f" × context {parallel.context}" if parallel.context > 1 else ""
        stage.error(
            keys,
            f"{seq_length} is not a multiple of tensor {parallel.tensor}{context} under sequence parallelism; "
            f"choose {either(choices)}",
            "sequence length % (tensor · context) == 0" if context else "sequence length % tensor == 0",
            seq_length,
            choices,
        )
