"""Memory of the most loaded rank, estimated before a job is submitted.

Parameters and activations follow Megatron-LM's megatron/training/theoretical_memory_usage.py and Korthikanti et al.
2022 (arXiv:2205.05198, table 2); attention scores are not kept (the engine's attention is torch's fused one). It is an
estimate: allocator overhead, workspaces and communication buffers come on top.
"""

from __future__ import annotations

import functools

from hpclm.core.parallel_spec import ParallelSpec, RecomputeSpec
from hpclm.core.spec import BatchSpec, GenerationSpec, ModelSpec, PromptSpec, StageSpec, TaskTemplate
from hpclm.planning.layer_split import layers_by_stage, layers_of_stage
from hpclm.planning.memory_estimate import MemoryEstimate
from hpclm.planning.task import task_named

# fp32 master weight and two moments of AdamW.
OPTIMIZER_BYTES = 12
FP32_OPTIMIZER_BYTES = 8
# Of an attention score with dropout on a CPU: its weight, what is left of it, and the factor, each fp32.
_SCORE_BYTES = 12


def element_bytes(precision: str) -> int:
    """Bytes of a weight: 4 in fp32 and tf32, 2 in bf16 and fp16."""
    return 4 if precision in ("fp32", "tf32") else 2


def layer_parameters(model: ModelSpec) -> int:
    """Weights of one transformer layer: attention, MLP or experts, two norms, and biases if any."""
    return shared_parameters(model) + (model.num_moe_experts or 1) * mlp_parameters(model)


def mlp_parameters(model: ModelSpec) -> int:
    """Of a layer's MLP, or of one of its experts."""
    h, ffn = model.hidden_size, model.ffn_hidden_size
    fc1 = 2 * ffn if model.gated else ffn
    return h * fc1 + ffn * h + (fc1 + h if model.add_bias_linear else 0)


def shared_parameters(model: ModelSpec) -> int:
    """Of a layer's attention, its norms, and the router where it has experts."""
    h, biases = model.hidden_size, int(model.add_bias_linear)
    query, key = model.kv_channels * model.num_attention_heads, model.kv_channels * model.num_query_groups
    attention = h * (query + 2 * key) + query * h + (query + 2 * key + h) * biases
    return attention + 2 * norm_parameters(model) + (model.num_moe_experts or 0) * (h + biases)


def norm_parameters(model: ModelSpec) -> int:
    """Scale, and for layer norm the shift."""
    return model.hidden_size * (1 if model.normalization == "rmsnorm" else 2)


def embedding_parameters(model: ModelSpec) -> int:
    """The padded word table and, with learned positions, the position table."""
    positions = model.max_position_embeddings * model.hidden_size if model.position_embedding == "learned" else 0
    return model.padded_vocab_size * model.hidden_size + positions


def total_parameters(model: ModelSpec) -> int:
    """All weights of the model, padding of the vocabulary included."""
    output = 0 if model.tie_embeddings else model.padded_vocab_size * model.hidden_size
    return model.num_layers * layer_parameters(model) + embedding_parameters(model) + norm_parameters(model) + output


def stage_parameters(model: ModelSpec, parallel: ParallelSpec, stage: int) -> int:
    """Weights of a rank of a pipeline stage: its layers, embeddings in the first, output layer and final norm in the
    last."""
    words = model.padded_vocab_size * model.hidden_size // parallel.tensor
    layers = sum(layers_of_stage(model.num_layers, parallel, stage))
    if model.num_moe_experts is None:
        count = layers * -(-layer_parameters(model) // parallel.tensor)
    else:
        count = layers * -(-shared_parameters(model) // parallel.tensor) + expert_parameters(model, parallel, stage)
    is_last = stage == parallel.pipeline - 1
    if stage == 0:
        count += words + embedding_parameters(model) - model.padded_vocab_size * model.hidden_size
    if is_last:
        # of tied embeddings the last of several stages has a copy
        count += norm_parameters(model) + (0 if stage == 0 and model.tie_embeddings else words)
    return count


def expert_parameters(model: ModelSpec, parallel: ParallelSpec, stage: int) -> int:
    """Those of `stage_parameters` that are of experts; 0 where there are none."""
    if model.num_moe_experts is None:
        return 0
    layers, experts = sum(layers_of_stage(model.num_layers, parallel, stage)), model.num_moe_experts // parallel.expert
    return layers * experts * -(-mlp_parameters(model) // parallel.expert_tensor_size)


def prompt_parameters(
    model: ModelSpec, encodes: bool, prompt: PromptSpec | None, templates: tuple[TaskTemplate, ...], tensor: int
) -> tuple[int, int]:
    """Trainable weights of prompt learning: all of them, and those of one rank (`tpmlp` is split over tensor ranks)."""
    h = model.hidden_size
    tables = sum(template.total_virtual_tokens for template in templates) * h
    if not encodes or prompt is None:
        return tables, tables
    inner, layers = prompt.encoder_hidden, prompt.encoder_layers
    if prompt.encoder == "tpmlp":
        return tables + 2 * h * inner + inner + h, tables + (2 * h * inner + inner) // tensor + h
    if prompt.encoder == "embedding":
        return tables, tables
    if prompt.encoder == "mlp":
        encoder = h * inner + inner + (layers - 2) * (inner * inner + inner) + inner * h + h
    else:
        width, each = (inner, inner // 2) if prompt.encoder == "biglstm" else (h, inner)
        tables = tables // h * width
        lstm = sum(2 * 4 * (each * (before + each) + 2 * each) for before in [width] + [2 * each] * (layers - 1))
        encoder = lstm + 2 * each * 2 * each + 2 * each + 2 * each * h + h
    return tables + encoder, tables + encoder


def layer_activations(
    model: ModelSpec,
    parallel: ParallelSpec,
    width: int,
    *,
    frozen: bool,
    scored: int = 0,
    each_head: bool = False,
    recomputed: frozenset[str] = frozenset(),
) -> float:
    """Bytes a token that one layer keeps for the backward pass, on one rank.

    With ffn = 4h and trained weights it is h·(8 + 26/TP) at 2 bytes an element: the h·(10 + 24/TP) of arXiv:2205.05198,
    section 4, without attention scores and the masks of dropout, and with the attention's result twice. Whole on each
    tensor rank, unless the sequence is split, are the inputs of both norms and, for weights that are trained, of the
    linear layers after them. Split are queries, keys, values and the attention's result (twice: as its own and as its
    projection's input), queries and keys again where they are rotated, and what the MLP's activation needs. `hpclm plan
    --trace` counts the same from the engine's own code; a test compares them.

    Args:
        scored: positions whose attention scores are kept for each token, where attention is not fused.
        each_head: keys and values are repeated for each head of their group (see `flash_attention.each_head`).
        recomputed: modules whose inside is computed again (`RecomputeSpec.modules`).
    """
    query, key = model.kv_channels * model.num_attention_heads, model.kv_channels * model.num_query_groups
    rotated = query + key if model.position_embedding == "rope" else 0
    mlp = (2 if model.gated else 1) * model.ffn_hidden_size  # both halves of what a gate is given
    mlp += 0 if frozen else model.ffn_hidden_size
    whole, split = 2 * model.hidden_size, 2 * query + 2 * key + rotated
    if not frozen:
        whole += 0 if "layernorm" in recomputed else 2 * model.hidden_size
        split += query
    if not recomputed & {"mlp", "moe"}:
        more = _mlp(model, parallel, mlp, frozen=frozen)
        whole, split = whole + more[0], split + more[1]
    masks = 2 * model.hidden_size if model.hidden_dropout > 0 and not frozen else 0
    if repeated := each_head and query != key:
        # without rotation the projection's result is kept for the queries, otherwise nothing of it is
        split += 2 * query - (3 * key if rotated else 0)
    if parallel.context > 1 and not repeated:
        # keys and values of the whole sequence
        split += 2 * key * parallel.context
    elif parallel.context > 1:
        split += 2 * query * (parallel.context - 1)
    kept = (whole / parallel.tensor if parallel.sequence_parallel else whole) + split / parallel.tensor
    if model.num_query_groups < parallel.tensor:
        # each rank gathers queries, keys and values of all, and takes its own of them
        kept += (query + 2 * key) * (1 - 1 / parallel.tensor)
    scores = scored * model.num_attention_heads * _SCORE_BYTES / parallel.tensor
    return kept * width + scores + (masks / parallel.tensor if parallel.sequence_parallel else masks)


def _mlp(model: ModelSpec, parallel: ParallelSpec, mlp: int, *, frozen: bool) -> tuple[int, int]:
    """Values a token that a layer's MLP keeps: whole on each tensor rank, and split over them."""
    if model.num_moe_experts is None:
        return 0, mlp
    return _experts_share(model, parallel, mlp, frozen=frozen), 0


def _experts_share(model: ModelSpec, parallel: ParallelSpec, mlp: int, *, frozen: bool) -> int:
    """What a rank's experts keep, in values for each token of this rank: where all have as many tokens, a rank is given
    as many as it sends, and those of the ranks with the same experts. What comes out of an activation is kept for its
    weight, the router's share.

    Args:
        mlp: what an MLP keeps of a token.
    """
    shared = parallel.expert_tensor_size
    each = (0 if frozen else model.hidden_size) + (mlp + model.ffn_hidden_size) // shared
    return model.moe_router_topk * shared * each


def activation_bytes(
    model: ModelSpec,
    parallel: ParallelSpec,
    batch: BatchSpec,
    seq_length: int,
    width: int,
    recompute: RecomputeSpec | None = None,
    *,
    frozen: bool = False,
    stage: int = 0,
    scored: int = 0,
    each_head: bool = False,
) -> int:
    """Activations kept for the backward pass on a rank of a pipeline stage.

    A stage holds those of the micro-batches that are under way there (see `in_flight`). The logits are kept in fp32
    and, if that is another type, in the compute type too. With full recomputation a layer (or group of layers) keeps
    its input, s·b·h, and one group at a time is whole; what `selective` saves is not kept anyway.

    Args:
        frozen: no weight is trained, so no input of a linear layer is kept for its gradient.
        scored, each_head: see `layer_activations`.
    """
    tokens = seq_length // parallel.context * batch.micro_batch_size
    chunks = layers_of_stage(model.num_layers, parallel, stage)
    count = max(1, max(chunks))  # fewer than one is refused elsewhere
    recomputed = recompute.recomputed if recompute is not None else frozenset[str]()
    of_layer = functools.partial(
        layer_activations, model, parallel, width, frozen=frozen, scored=scored, each_head=each_head
    )
    whole = tokens * of_layer(recomputed=recomputed)
    layers, working = whole * count, 0.0
    entry = tokens * model.hidden_size * width // (parallel.tensor if parallel.sequence_parallel else 1)
    # what the backward pass of a recomputed MLP holds beside the layer's own
    gradients = tokens * (7 if model.gated else 2) * model.ffn_hidden_size // parallel.tensor * width
    if recomputed & {"mlp", "moe"}:
        working = tokens * of_layer(recomputed=recomputed - {"mlp", "moe"}) - whole + gradients
    if recompute is not None and recompute.granularity == "full":
        size = min(recompute.num_layers or 1, count)
        if recompute.method == "uniform":
            layers, working = entry * -(-count // size), whole * size + gradients
        else:
            kept = whole * (count - size)  # of the last layers, which is gone when the first ones are recomputed
            layers, working = entry * size + kept, max(0.0, whole + gradients - kept)
    held = int(layers) * in_flight(parallel, batch, stage) + _between_stages(parallel, entry)
    if stage < parallel.pipeline - 1:
        return held + int(working)
    logits = tokens * model.padded_vocab_size // parallel.tensor * (4 if width == 4 else 4 + width)
    return held + max(int(working), logits)


def _between_stages(parallel: ParallelSpec, entry: int) -> int:
    """Activations and gradients that are sent and received; under the interleaved schedule ahead of their turn."""
    if parallel.pipeline == 1:
        return 0
    return entry * (2 if parallel.virtual_pipeline == 1 else parallel.virtual_pipeline * parallel.pipeline)


def in_flight(parallel: ParallelSpec, batch: BatchSpec, stage: int) -> int:
    """Passes of a chunk that a stage has begun and not ended (schedules.py, get_pp_rank_microbatches): under 1F1B as
    many as there are stages from this one on."""
    micro_batches, chunks = batch.gradient_accumulation_steps, parallel.virtual_pipeline
    after = parallel.pipeline - stage - 1
    if chunks == 1:
        return min(after + 1, micro_batches)
    return min(2 * after + (chunks - 1) * parallel.pipeline + 1, micro_batches * chunks)


def generation_bytes(
    model: ModelSpec, parallel: ParallelSpec, generation: GenerationSpec, length: int, width: int
) -> int:
    """Key/value cache, one layer's states while the prompts are read, and logits of each row's last token, which are
    gathered over tensor ranks."""
    groups = max(1, model.num_query_groups // parallel.tensor)
    layers = max(map(sum, layers_by_stage(model.num_layers, parallel)))
    cache = 2 * layers * generation.batch_size * length * groups * model.kv_channels * width
    mlp = (4 if model.gated else 2) * model.ffn_hidden_size // parallel.tensor
    states = generation.batch_size * length * (4 * model.hidden_size + mlp) * width
    logits = generation.batch_size * model.padded_vocab_size * (4 + width)
    return cache + states + logits


def sequence_length(spec: StageSpec) -> int | None:
    """Tokens of a sample: of text, or of a prompt with its answer; None for a stage that reads neither."""
    if spec.pretraining_length is not None:
        return spec.pretraining_length
    return spec.data.max_seq_length if spec.data is not None else None


def memory(spec: StageSpec) -> MemoryEstimate | None:
    """Bytes on the most loaded rank; None if the length of a sample is unknown.

    Trained weights cost 18 bytes each in bf16/fp16 (2 + 4 gradient in fp32 + 12) and 16 in fp32; frozen ones 2 (4). The
    distributed optimizer divides the last 12 (8) over the ranks that have the same weights.
    Prompt tables and encoders are fp32.
    """
    found = [of_stage(spec, stage) for stage in range(spec.parallel.pipeline)]
    return max((one for one in found if one is not None), key=lambda estimate: estimate.total, default=None)


def of_stage(spec: StageSpec, stage: int) -> MemoryEstimate | None:
    """The same of a rank of one pipeline stage."""
    length = sequence_length(spec)
    if length is None:
        return None
    model, parallel, task = spec.model, spec.parallel, task_named(spec.task)
    templates = tuple(spec.templates)
    width = element_bytes(spec.trainer.precision)
    total, mine = total_parameters(model), stage_parameters(model, parallel, stage)
    if task.answers and spec.generation is not None:
        extra, _ = prompt_parameters(model, False, None, templates, 1)
        held = generation_bytes(model, parallel, spec.generation, length, width)
        return MemoryEstimate(mine * width + extra * 4, 0, 0, held, total + extra, 0)
    frozen, recompute = task.learns_prompts, spec.trainer.recompute
    # with dropout in it, attention has no fused kernel on a CPU
    kept = spec.device == "cpu" and model.attention_dropout > 0 and not frozen
    kept = kept and (recompute is None or "core_attn" not in recompute.recomputed)
    held = activation_bytes(
        model, parallel, spec.batch, length, width, recompute, frozen=frozen, stage=stage,
        scored=length if kept else 0, each_head=spec.device == "gpu" and width == 4,
    )  # fmt: skip
    if task.learns_prompts:
        trainable, own = prompt_parameters(model, task.encodes_prompts, spec.prompt, templates, parallel.tensor)
        return MemoryEstimate(
            mine * width + own * 4, own * 4, own * FP32_OPTIMIZER_BYTES, held, total + trainable, trainable
        )
    state = OPTIMIZER_BYTES if width == 2 else FP32_OPTIMIZER_BYTES
    optimizer = 0 if spec.optim.offload else _updated(spec, stage, state)
    return MemoryEstimate(mine * width, mine * 4, optimizer, held, total, total)


def _updated(spec: StageSpec, stage: int, each: int) -> int:
    """Bytes for the weights that a rank updates, so many for each."""
    mine, parallel = stage_parameters(spec.model, spec.parallel, stage), spec.parallel
    if not parallel.distributed_optimizer:
        return mine * each
    experts = expert_parameters(spec.model, parallel, stage)
    dense = -(-(mine - experts) * each // (parallel.data * parallel.context))
    return dense + -(-experts * each // parallel.expert_data)


def offloaded_bytes(spec: StageSpec) -> int:
    """What a rank of the largest pipeline stage has in host memory: fp32 masters, gradients and both moments."""
    if not spec.optim.offload:
        return 0
    return max(_updated(spec, stage, 4 + OPTIMIZER_BYTES) for stage in range(spec.parallel.pipeline))


def checkpoint_bytes(spec: StageSpec, estimate: MemoryEstimate) -> int:
    """Of a checkpoint: what is trained, in its type, with the optimizer's state."""
    if task_named(spec.task).learns_prompts or element_bytes(spec.trainer.precision) == 4:
        return estimate.trainable_parameters * (4 + FP32_OPTIMIZER_BYTES)
    return estimate.trainable_parameters * (2 + OPTIMIZER_BYTES)
