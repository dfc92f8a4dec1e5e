"""Memory of a rank of engine hf, term by term, and of its node's host where something is offloaded.

Weights that are trained are fp32 (with DeepSpeed in bf16 or fp16: 2 bytes and an fp32 master), gradients as PyTorch
keeps them, the optimizer's tensors fp32. What a strategy divides is as FSDP2 and ZeRO divide it (Rajbhandari et al.
2020, arXiv:1910.02054, section 5); what is gathered for computing is a layer and the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpclm.core.fine_tune_spec import FineTuneStageSpec, MethodSpec
from hpclm.formats.huggingface.model_facts import ModelFacts
from hpclm.planning.memory_estimate import GIB, MemoryEstimate
from hpclm.planning.stage_context import StageContext

# Tensors like the weight that an optimizer keeps, fp32 each.
_STATES = {"adamw": 2.0, "adam": 2.0, "lamb": 2.0, "lion": 1.0, "sgd": 1.0, "adafactor": 0.01, "adamw-8bit": 0.5}
# Bytes of a weight in NormalFloat 4; and of each block of 64 a scale in 8 bits, of 256 of which one is fp32.
_NF4_WEIGHT, _NF4_SCALES = 0.5, (1 + 4 / 256) / 64
# Names of the tables of words and of output layers, which are never quantised.
TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
# Tokens of a question of lm-evaluation-harness with its examples; few have more.
_QUESTION = 1024


@dataclass(frozen=True)
class HostMemory:
    """Bytes in host memory a rank, and on a node's disk."""

    weights: int
    optimizer: int
    gradients: int
    disk: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients


# What a linear layer takes and gives, by the names that architectures have for it; others: the hidden size.
_LAYERS = {
    "q_proj": ("attention's input", "query"),
    **dict.fromkeys(("k_proj", "v_proj"), ("attention's input", "key")),
    **dict.fromkeys(("c_attn", "query_key_value", "qkv_proj", "Wqkv"), ("attention's input", "all heads")),
    **dict.fromkeys(("o_proj", "out_proj", "dense"), ("query", "hidden")),
    **dict.fromkeys(("gate_proj", "up_proj", "c_fc", "fc1", "fc_in", "dense_h_to_4h"), ("MLP's input", "ffn")),
    **dict.fromkeys(("down_proj", "fc2", "fc_out", "dense_4h_to_h"), ("ffn", "hidden")),
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_GATED = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
_PLAIN = ("c_attn", "o_proj", "c_fc", "fc2")


@dataclass(frozen=True)
class _Target:
    """A linear layer with an adapter: what it takes, and both widths. Layers that take the same share it."""

    takes: str
    width: int
    gives: int


def _widths(facts: ModelFacts) -> dict[str, int]:
    hidden = facts.hidden_size or 0
    query, key = facts.query_width or hidden, facts.key_width or hidden
    return {"hidden": hidden, "attention's input": hidden, "MLP's input": hidden, "query": query, "key": key,
            "all heads": query + 2 * key, "ffn": facts.ffn_hidden_size or 4 * hidden}  # fmt: skip


def _targets(facts: ModelFacts, method: MethodSpec) -> list[_Target]:
    """Of a block of the model."""
    hidden, widths = facts.hidden_size or 0, _widths(facts)
    names = list(method.lora.targets) or (["q_proj", "v_proj"] if facts.gated else ["c_attn"])
    if names == ["all-linear"]:
        # routed experts are no linear layers, and stay as they are
        gated = _ATTENTION if facts.has_experts else _GATED
        names = list(gated if facts.gated else _PLAIN)
    if "c_proj" in names:  # GPT-2's of both the attention and the MLP
        names = [one for one in names if one != "c_proj"] + ["out_proj", "fc2"]
    found = [_LAYERS.get(name.rpartition(".")[2], (name, "hidden")) for name in names]
    return [_Target(takes, widths.get(takes, hidden), widths[gives]) for takes, gives in found]


def trained_parameters(facts: ModelFacts, method: MethodSpec) -> int:
    """Weights that are trained."""
    hidden = facts.hidden_size or 0
    if method.method == "full":
        return facts.parameters
    if method.method == "lora":
        widths = sum(one.width + one.gives for one in _targets(facts, method))
        return method.lora.rank * widths * (facts.num_layers or 1) + saved_parameters(facts, method)
    count = method.virtual_tokens.count
    encoder = 0
    if method.method == "p-tuning":
        inner = method.virtual_tokens.encoder_hidden or hidden
        encoder = 2 * hidden * inner + inner * inner
    return count * hidden + encoder


def saved_parameters(facts: ModelFacts, method: MethodSpec) -> int:
    """Weights of the modules that are trained whole beside LoRA's factors. Norms and routers are left out."""
    names = tuple(method.lora.modules_to_save) if method.method == "lora" else ()
    hidden = facts.hidden_size or 0
    widths = _widths(facts)
    total = 0
    for matrix in facts.matrices:
        if not names or not matrix.endswith(names):
            continue
        own = matrix.rpartition(".")[2]
        if own in _LAYERS:
            takes, gives = _LAYERS[own]
            total += widths.get(takes, hidden) * widths[gives]
        elif own in TABLES:
            total += facts.embeddings
    return total


def memory(spec: FineTuneStageSpec, facts: ModelFacts) -> MemoryEstimate:
    """Bytes on a rank's device."""
    width = 4 if spec.trainer.precision in ("fp32", "tf32") else 2
    if spec.task == "evaluate":
        held = max(_answers(spec, facts, width), _harness(spec, facts, width))
        return MemoryEstimate(int(_frozen_bytes(spec, facts, width)), 0, 0, held, facts.parameters, 0)
    trained = trained_parameters(facts, spec.method)
    full = spec.method.method == "full"
    strategy, offload = spec.sharding.strategy, spec.sharding.offload
    ranks = spec.parallel.world_size
    group = spec.sharding.group_size or ranks
    zero = strategy.startswith("zero")
    weights_by = group if strategy in ("fsdp", "zero3") else 1
    # adapters are whole on every rank, but for DeepSpeed's stages; not what FSDP2 divides of modules_to_save
    saved = saved_parameters(facts, spec.method)
    apart = facts.parameters if full else saved
    mine = trained if strategy != "fsdp" else trained - apart + apart / group
    gradients_by = ranks if strategy in ("zero2", "zero3") else 1
    state_by = ranks if zero else 1
    kept = width if zero or not full else 4
    weights = _frozen_bytes(spec, facts, kept, weights_by)
    if not full:
        weights += mine * (width if zero else 4)
        weights += min(saved, facts.embeddings) * 4 if strategy == "fsdp" and group > 1 else 0  # where it is used
    if strategy == "ddp" and full and width < 4:
        weights += facts.parameters * width  # what autocast computes with is held until the backward pass
    if weights_by > 1:
        weights += _gathered(spec, facts, width)
    gradients = mine * (width if zero else 4) / gradients_by
    state = _state_bytes(spec, mine, width) / state_by
    if offload == "all":
        weights, gradients = weights - _offloaded(spec, facts, kept) / weights_by, 0.0
    if offload in ("optimizer", "all"):
        state = 0.0
    if offload == "all" and strategy == "fsdp" and not full:
        # factors are no part of what FSDP2 divides and offloads
        gradients, state = (trained - saved) * 4.0, _state_bytes(spec, trained - saved, width)
    gradients += _bucket(spec, width)
    held = _activations(spec, facts, width)
    if zero and offload == "none":
        held = max(held, int(trained * 4 / state_by))  # the gradients in fp32, when the optimizer takes them
    return MemoryEstimate(
        int(weights), int(gradients), int(state), held, facts.parameters + (0 if full else trained), trained
    )


def _tables(facts: ModelFacts) -> int:
    """Weights that are never quantised: those of the words and of the output."""
    untied = any(name.rpartition(".")[2] in ("lm_head", "embed_out") for name in facts.matrices)
    return min(facts.parameters, facts.embeddings * (2 if untied else 1))


def _frozen_bytes(spec: FineTuneStageSpec, facts: ModelFacts, width: int, parts: int = 1) -> float:
    """Of a rank's part of the model's weights; where its linear layers are quantised, every rank has their scales."""
    if spec.huggingface.quantization == "none":
        return facts.parameters * width / parts
    layers = facts.parameters - _tables(facts)
    # a layer is whole for a product
    most = layers / max(1, facts.num_layers or 1) / 3
    return _offloaded(spec, facts, width) / parts + layers * _NF4_SCALES + most * width


def _offloaded(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> float:
    """Bytes of the whole model's weights that FSDP2 divides, or may keep in host memory."""
    if spec.huggingface.quantization == "none":
        return float(facts.parameters * width)
    tables = _tables(facts)
    return tables * width + (facts.parameters - tables) * _NF4_WEIGHT


def _gathered(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> float:
    """Bytes of weights that a rank holds beside its own part: a layer and the next, and the embeddings. ZeRO-3 holds
    more where it may (stage3_max_live_parameters), each once more as it arrives."""
    layer = (facts.parameters - facts.embeddings) / max(1, facts.num_layers or 1)
    quantized = spec.huggingface.quantization != "none"
    most = 2 * layer * (_NF4_WEIGHT if quantized else width) + facts.embeddings * width
    zero = spec.sharding.deepspeed.get("zero_optimization")
    if not isinstance(zero, dict):
        return most
    live = int(zero.get("stage3_max_live_parameters", 1_000_000_000)) * width
    return float(min(2 * facts.parameters * width, max(most, live)))


def _bucket(spec: FineTuneStageSpec, width: int) -> int:
    """Bytes that DeepSpeed reserves to collect gradients in before they are sent; twice where it overlaps."""
    zero = spec.sharding.deepspeed.get("zero_optimization")
    if not isinstance(zero, dict):
        return 0
    size = int(zero.get("reduce_bucket_size", 500_000_000))
    overlaps = spec.sharding.strategy != "zero3" and zero.get("overlap_comm")
    return size * width * (2 if overlaps else 1)


def _state_bytes(spec: FineTuneStageSpec, trained: float, width: int) -> float:
    master = 4 if spec.sharding.strategy.startswith("zero") and width == 2 else 0
    return trained * (4 * _STATES[spec.optim.name] + master)


def host_memory(spec: FineTuneStageSpec, facts: ModelFacts) -> HostMemory:
    """What a rank keeps in its node's memory, or on its disk."""
    offload, zero = spec.sharding.offload, spec.sharding.strategy.startswith("zero")
    width = 4 if spec.trainer.precision in ("fp32", "tf32") else 2
    trained, ranks = trained_parameters(facts, spec.method), spec.sharding.group_size or spec.parallel.world_size
    kept = width if zero or spec.method.method != "full" else 4
    if not zero and spec.method.method != "full":
        trained = saved_parameters(facts, spec.method)
    weights = _offloaded(spec, facts, kept) / ranks if offload == "all" else 0.0
    state = _state_bytes(spec, trained, width) / ranks if offload != "none" else 0.0
    gradients = trained * 4 / ranks if offload != "none" else 0.0
    disk = 0.0
    if spec.sharding.nvme is not None:
        disk, weights, state = weights + state, 0.0, 0.0
    return HostMemory(int(weights), int(state), int(gradients), int(disk))


def note_checkpoints(stage: StageContext, spec: FineTuneStageSpec, facts: ModelFacts) -> None:
    """Disk that the checkpoints of a run take: fp32 weights that are trained, and the optimizer's state."""
    if not stage.task.trains:
        return
    one = trained_parameters(facts, spec.method) * 4 * (1 + _STATES[spec.optim.name])
    if one < GIB:
        return
    kept = spec.checkpoint.keep_last + (spec.checkpoint.keep_best or 0)
    what = f"each has about {one / GIB:.1f} GiB, and up to {kept} are kept while another is written: "
    stage.info(("checkpoint",), f"{what}{one * (kept + 1) / GIB:.0f} GiB of disk", "disk of checkpoints")


def note_host_memory(stage: StageContext, spec: FineTuneStageSpec, facts: ModelFacts) -> None:
    """What offloading needs of a node, and a warning where the job does not ask for it."""
    if not stage.task.trains or spec.sharding.offload == "none":
        return
    devices = stage.recipe.resources.devices_per_node
    found = host_memory(spec, facts)
    node = found.total * devices
    parts = f"weights {found.weights * devices / GIB:.1f}, optimizer {found.optimizer * devices / GIB:.1f}, gradients "
    parts += f"{found.gradients * devices / GIB:.1f}"
    disk = f", and {found.disk * devices / GIB:.1f} GiB on its disk" if found.disk else ""
    stage.info(
        ("sharding", "offload"), f"a node needs about {node / GIB:.1f} GiB of memory ({parts}){disk}", "host memory"
    )
    asked = stage.recipe.resources.memory_gib
    if asked is not None and node > asked * GIB:
        needed = -(-node // GIB)
        what = f"{asked} GiB per node, and what is offloaded needs about {needed}; choose {needed} or more, or null"
        stage.warning(("resources", "memory_gib"), what, "host memory <= memory_gib", asked, (needed,))


def layer_activations(facts: ModelFacts, width: int, method: MethodSpec) -> float:
    """Bytes a token that a layer of transformers keeps for the backward pass, with attention: documents.

    Inputs of both norms, what they give (for the weights behind them), queries, keys and values, the attention's result
    three times (as its own, in its order of heads, and as its projection's input), the MLP's gate, its activation, its
    values and their product; below fp32 also an fp32 copy of what is normalised. Of frozen layers inputs are not kept;
    of those with an adapter they are, and with dropout each has a copy of its own and a byte a value for what is
    dropped. The counter of storages says the same (tests/engine_hf/test_memory.py).
    """
    hidden = facts.hidden_size or 0
    query, key = facts.query_width or hidden, facts.key_width or hidden
    ffn = facts.ffn_hidden_size or 4 * hidden
    normed = 2 * hidden + (query + key if facts.head_norms else 0)
    elements = 4.0 * hidden + 4 * query + 2 * key + (query + key if facts.head_norms else 0)
    elements += (4 if facts.gated else 4.5) * ffn
    masks = 0
    if method.method != "full":
        elements -= 2 * hidden + query + (ffn if facts.gated else ffn / 2)
    if method.method == "lora":
        targets = _targets(facts, method)
        if method.lora.dropout > 0:
            masks = sum(one.width for one in targets)
            elements += masks
        else:
            elements += sum({one.takes: one.width for one in targets}.values())
        if method.lora.dora:  # both results, which the magnitude is multiplied with
            elements += 2 * sum(one.gives for one in targets)
    return elements * width + masks + (normed * 4 - normed * width if width < 4 else 0)


def _activations(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> int:
    """Of a micro-batch, at most: every sample is full, every token a label."""
    tokens = spec.batch.micro_batch_size * spec.data.max_seq_length
    layers = facts.num_layers or 0
    layer = tokens * layer_activations(facts, width, spec.method)
    inputs = tokens * (facts.hidden_size or 0) * width * layers
    kept = inputs + layer if spec.sharding.checkpointing else layer * layers
    logits = tokens * (facts.vocab_size or 0) * (8 + (width if width == 2 else 0))
    matrix = max((one.width * one.gives for one in _targets(facts, spec.method)), default=0)
    # DoRA's weight of one layer: the factors' product, the sum with the frozen one, its square
    dora = 3 * matrix * width if spec.method.method == "lora" and spec.method.lora.dora else 0
    return int(kept + logits + dora)


def _harness(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> int:
    """Logits of every token of the questions, which lm-evaluation-harness asks for, and again in fp32."""
    if spec.harness is None:
        return 0
    length = min(_QUESTION, facts.max_positions or _QUESTION)
    return spec.harness.batch_size * length * (facts.vocab_size or 0) * (width + 4)


def _answers(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> int:
    """Keys and values of a batch of answers, its logits, and what a layer makes of the prompts."""
    assert spec.generation is not None
    rows = spec.generation.batch_size
    length = spec.data.max_seq_length + spec.generation.max_new_tokens
    cache = 2 * (facts.num_layers or 0) * rows * length * (facts.key_width or facts.hidden_size or 0) * width
    hidden = facts.hidden_size or 0
    layer = (3 if facts.gated else 2) * (facts.ffn_hidden_size or 4 * hidden) + 4 * hidden
    return cache + rows * (facts.vocab_size or 0) * 4 + rows * spec.data.max_seq_length * layer * width
