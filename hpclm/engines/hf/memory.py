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


def trained_parameters(facts: ModelFacts, method: MethodSpec) -> int:
    """Weights that are trained. Of LoRA at most: every targeted module is taken as square of the hidden size."""
    hidden = facts.hidden_size or 0
    if method.method == "full":
        return facts.parameters
    if method.method == "lora":
        layers = facts.num_layers or 1
        targets = method.lora.targets or ["q_proj", "v_proj"]
        ffn = facts.ffn_hidden_size or 4 * hidden
        widths = [hidden + ffn if one in ("gate_proj", "up_proj", "down_proj") else 2 * hidden for one in targets]
        if targets == ["all-linear"]:
            widths = [2 * hidden] * 4 + [hidden + ffn] * 3
        saved = sum(facts.embeddings for _ in method.lora.modules_to_save)
        return method.lora.rank * sum(widths) * layers + saved
    count = method.virtual_tokens.count
    encoder = 0
    if method.method == "p-tuning":
        inner = method.virtual_tokens.encoder_hidden or hidden
        encoder = 2 * hidden * inner + inner * inner
    return count * hidden + encoder


def memory(spec: FineTuneStageSpec, facts: ModelFacts) -> MemoryEstimate:
    """Bytes on a rank's device."""
    width = 4 if spec.trainer.precision in ("fp32", "tf32") else 2
    if spec.task == "evaluate":
        return MemoryEstimate(facts.parameters * width, 0, 0, _answers(spec, facts, width), facts.parameters, 0)
    trained = trained_parameters(facts, spec.method)
    full = spec.method.method == "full"
    strategy, offload = spec.sharding.strategy, spec.sharding.offload
    ranks = spec.parallel.world_size
    group = spec.sharding.group_size or ranks
    zero = strategy.startswith("zero")
    weights_by = group if strategy in ("fsdp", "zero3") else 1
    # adapters are whole on every rank, but for DeepSpeed's stages
    gradients_by = group if (strategy == "fsdp" and full) else ranks if strategy in ("zero2", "zero3") else 1
    state_by = group if (strategy == "fsdp" and full) else ranks if zero else 1
    kept = width if zero or not full else 4
    weights = facts.parameters * kept / weights_by
    if not full:
        weights += trained * (width if zero else 4)
    if strategy == "ddp" and full and width < 4:
        weights += facts.parameters * width  # what autocast computes with is held until the backward pass
    if weights_by > 1:
        layer = (facts.parameters - facts.embeddings) / max(1, facts.num_layers or 1)
        weights += 2 * layer * width + facts.embeddings * width
    gradients = trained * (width if zero else 4) / gradients_by
    state = _state_bytes(spec, trained, width) / state_by
    if offload == "all":
        weights, gradients = weights - facts.parameters * kept / weights_by, 0.0
    if offload in ("optimizer", "all"):
        state = 0.0
    held = _activations(spec, facts, width)
    return MemoryEstimate(
        int(weights), int(gradients), int(state), held, facts.parameters + (0 if full else trained), trained
    )


def _state_bytes(spec: FineTuneStageSpec, trained: int, width: int) -> float:
    master = 4 if spec.sharding.strategy.startswith("zero") and width == 2 else 0
    return trained * (4 * _STATES[spec.optim.name] + master)


def host_memory(spec: FineTuneStageSpec, facts: ModelFacts) -> HostMemory:
    """What a rank keeps in its node's memory, or on its disk."""
    offload, zero = spec.sharding.offload, spec.sharding.strategy.startswith("zero")
    width = 4 if spec.trainer.precision in ("fp32", "tf32") else 2
    trained, ranks = trained_parameters(facts, spec.method), spec.sharding.group_size or spec.parallel.world_size
    kept = width if zero or spec.method.method != "full" else 4
    weights = facts.parameters * kept / ranks if offload == "all" else 0.0
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


def layer_activations(facts: ModelFacts, width: int, *, frozen: bool) -> float:
    """Bytes a token that a layer of transformers keeps for the backward pass, with attention: documents.

    Inputs of both norms, what they give (for the weights behind them), queries, keys and values, the attention's result
    three times (as its own, in its order of heads, and as its projection's input), the MLP's gate, its activation, its
    values and their product; below fp32 also an fp32 copy of what is normalised. The counter of storages says the same
    (tests/engine_hf/test_memory.py).
    """
    hidden = facts.hidden_size or 0
    query, key = facts.query_width or hidden, facts.key_width or hidden
    ffn = facts.ffn_hidden_size or 4 * hidden
    normed = 2 * hidden + (query + key if facts.head_norms else 0)
    elements = 4.0 * hidden + 4 * query + 2 * key + (query + key if facts.head_norms else 0)
    elements += (4 if facts.gated else 4.5) * ffn
    if frozen:
        elements -= 2 * hidden + query + (ffn if facts.gated else ffn / 2)
        elements += hidden * (4 / width if width < 4 else 0)  # the adapters' input in fp32
    return elements * width + (normed * 4 - normed * width if width < 4 else 0)


def _activations(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> int:
    """Of a micro-batch, at most: every sample is full, every token a label."""
    tokens = spec.batch.micro_batch_size * spec.data.max_seq_length
    layers = facts.num_layers or 0
    layer = tokens * layer_activations(facts, width, frozen=spec.method.method != "full")
    inputs = tokens * (facts.hidden_size or 0) * width * layers
    kept = inputs + layer if spec.sharding.checkpointing else layer * layers
    logits = tokens * (facts.vocab_size or 0) * (8 + (width if width == 2 else 0))
    return int(kept + logits)


def _answers(spec: FineTuneStageSpec, facts: ModelFacts, width: int) -> int:
    """Keys and values of a batch of answers, at most (as many key heads as query heads), and its logits."""
    assert spec.generation is not None
    rows = spec.generation.batch_size
    length = spec.data.max_seq_length + spec.generation.max_new_tokens
    cache = 2 * (facts.num_layers or 0) * rows * length * (facts.hidden_size or 0) * width
    return cache + rows * (facts.vocab_size or 0) * 4
