"""A rank of a stage of engine hf, run without memory, devices or other ranks (`planning.tracing`).

The model is built from its config.json and its weights are not read. Model, method, sharding (FSDP2's and DeepSpeed's
own code), loss, backward pass and optimizer are those of a run; what the host reads from a tensor is 1 or false.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from hpclm.core.errors import CheckpointError
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.rank_trace import RankTrace
from hpclm.data.ranks.packed_layout import Segments
from hpclm.engines.hf.ranks import base_models, fake_quantized, fake_sharding, fine_tuning, quantized
from hpclm.engines.hf.ranks.document_batches import DocumentBatch, document_batch
from hpclm.engines.hf.ranks.hf_groups import DataGroup, join
from hpclm.engines.hf.ranks.hf_loading import Weights, empty_model, load_tokenizer
from hpclm.engines.hf.ranks.precision import dtype_of
from hpclm.training.ranks.rank_tracing import counted, kernels_of_gpus, without_bytes
from hpclm.training.ranks.tracer_program import serve
from hpclm.worker.rank_identity import RankFacts
from hpclm.worker.ranks.storage_counter import StorageCounter

_STEPS = 2  # in the second the optimizer has its state
_FRAMES = 12
# What offloading keeps in the node's memory.
_ELSEWHERE = {
    "none": frozenset[str](),
    "optimizer": frozenset({"optimizer", "gradients"}),
    "all": frozenset({"weights", "optimizer", "gradients"}),
}


def trace(spec: FineTuneStageSpec, rank: int) -> RankTrace:
    """Run two steps (or a batch of answers) of this rank. What is wrong with shapes raises as it would in a run."""
    began = time.perf_counter()
    folder = _model_folder(spec)
    group = _group(spec, rank)
    counter = StorageCounter()
    counter.elsewhere = _ELSEWHERE[spec.sharding.offload] if spec.task == "fine-tune" else frozenset()
    model = empty_model(folder, spec.huggingface)
    tell_kinds(counter, model)
    mode = FakeTensorMode()
    weights = NoWeights(model, mode)
    alone = fake_sharding.without_ranks()
    layers = contextlib.nullcontext() if spec.huggingface.quantization == "none" else fake_quantized.products()
    with alone, layers, without_bytes(mode, counter, true=False), kernels_of_gpus(), numbers():
        run = answers if spec.task == "evaluate" else train
        assumed = run(_at_home(spec), folder, model, weights, group, counter)
    if counter.most_elsewhere:
        kept = " and ".join(sorted(counter.elsewhere))
        assumed.append(f"{kept} lie in the node's memory: {counter.most_elsewhere / 2**30:.1f} GiB a rank, not counted")
    return counted(counter, spec.stage, rank, began, assumed, on_gpu=spec.device == "gpu")


def _model_folder(spec: FineTuneStageSpec) -> Path:
    """Where the architecture is described: the base itself, or of a stage's what the plan names among its inputs."""
    for place in (spec.base, *spec.needs.inputs):
        if (Path(place) / "config.json").is_file():
            return Path(place)
    raise CheckpointError(f"{spec.base}: has no config.json; put the model's there, its weights are not needed")


def _group(spec: FineTuneStageSpec, rank: int) -> DataGroup:
    node, local = divmod(rank, spec.parallel.devices_per_node)
    facts = RankFacts(rank, spec.parallel.world_size, local, node, "", 0)
    return join(FakeStore(), facts, torch.device("cpu"), backend="fake")


def _at_home(spec: FineTuneStageSpec) -> FineTuneStageSpec:
    """Nothing offloaded: what would be is told by its kind."""
    deepspeed = dict(spec.sharding.deepspeed)
    if "zero_optimization" in deepspeed:
        stays = {key: value for key, value in deepspeed["zero_optimization"].items() if not key.startswith("offload_")}
        deepspeed["zero_optimization"] = stays
    return replace(spec, sharding=replace(spec.sharding, offload="none", nvme=None, deepspeed=deepspeed))


class NoWeights(Weights):
    """Tensors without bytes in the places of an empty model."""

    def __init__(self, model: Any, mode: FakeTensorMode) -> None:
        for module in model.modules():
            held = {name: one for name, one in module._buffers.items() if one is not None}
            module._buffers.update({name: mode.from_tensor(one) for name, one in held.items()})

    def _made(self, name: str, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        if quantized.is_packed(parameter):
            return fake_quantized.packed(parameter)
        return nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=parameter.requires_grad)


def train(
    spec: FineTuneStageSpec, folder: Path, model: Any, weights: Weights, group: DataGroup, counter: StorageCounter
) -> list[str]:
    """A step, and another one, in which the optimizer has its state."""
    counter.kind = "weights"
    wanted = spec.method.virtual_tokens.init_text
    tokenizer = None if wanted is None else load_tokenizer(folder, remote_code=spec.huggingface.remote_code)
    vocabulary = model.get_input_embeddings().num_embeddings
    started = base_models.Started(folder, model, weights, tokenizer, "", vocabulary)
    whole, sharding = fine_tuning.sharded(started, spec, group)
    counter.mark(fake_sharding.optimizer_tensors(sharding), "optimizer")
    counter.kind = "activations"
    virtual = 0 if whole.virtual_tokens is None else spec.method.virtual_tokens.count
    batch = _full_batch(spec, virtual)
    for parameter in whole.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor) and not hasattr(parameter, "ds_id"):
            parameter.register_post_accumulate_grad_hook(lambda one: counter.mark([one.grad], "gradients"))  # type: ignore[no-untyped-call]
    stop: Any = SimpleNamespace(requested=False)
    # with the second there are gradients already, which of adapters are few
    count = 2 if spec.method.method == "full" and spec.batch.gradient_accumulation_steps > 1 else 1
    batches: Any = _Batches([batch] * count)
    steps = fine_tuning.FineTuningSteps(spec, group, whole, _Told(sharding, counter), batches, stop)
    for step in range(_STEPS):
        steps.step(step)
    rows = f"{spec.batch.micro_batch_size} rows of {spec.data.max_seq_length} tokens"
    return [f"{rows}, each of them learned"]


def _full_batch(spec: FineTuneStageSpec, virtual: int) -> DocumentBatch:
    """The largest micro-batch: every row has all the tokens it may have, and learns each."""
    length = spec.data.max_seq_length
    row = np.zeros(length, dtype=np.int32), np.ones(length, dtype=np.bool_)
    batch = document_batch([row] * spec.batch.micro_batch_size, virtual)
    if spec.device == "cpu":
        return batch
    bounds = torch.tensor(batch.documents.starts, dtype=torch.int32)
    segments = Segments(bounds, bounds, length + virtual, length + virtual, None)
    return replace(batch, documents=replace(batch.documents, segments=segments))


class _Batches:
    """The same micro-batches in every step (see `InstructionBatches`)."""

    steps_per_epoch = 1

    def __init__(self, micro_batches: list[DocumentBatch]) -> None:
        self.micro_batches = micro_batches

    def train(self, step: int) -> list[DocumentBatch]:
        return self.micro_batches if step else self.micro_batches[:1]

    def weight(self, step: int) -> int:
        return sum(len(batch.labels) for batch in self.micro_batches)


class _Told:
    """A sharding, with the counter told what is being made."""

    def __init__(self, sharding: Any, counter: StorageCounter) -> None:
        self.sharding, self.counter = sharding, counter
        self.optimizer_name = sharding.optimizer_name

    def accumulate(self, batches: list[DocumentBatch], weight: float) -> Tensor:
        self.counter.kind = "activations"
        total: Tensor = self.sharding.accumulate(batches, weight)
        return total

    def update(self, rate: float) -> float:
        self.counter.kind = "optimizer"
        norm: float = self.sharding.update(rate)
        return norm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sharding, name)


def answers(
    spec: FineTuneStageSpec, folder: Path, model: Any, weights: Weights, group: DataGroup, counter: StorageCounter
) -> list[str]:
    """The prompts of a batch, and the last token of their answers."""
    from transformers import DynamicCache

    assert spec.generation is not None
    counter.kind = "weights"
    weights.fill([("", model)], dtype_of(spec.trainer.precision))
    model.tie_weights()
    model.eval()
    model.set_attn_implementation("sdpa")
    rows, length = spec.generation.batch_size, spec.data.max_seq_length
    counter.kind = "activations"
    with torch.no_grad():
        cache: Any = DynamicCache(config=model.config)
        tokens = torch.zeros((rows, length), dtype=torch.int64)
        mask = torch.ones_like(tokens)
        made = model(tokens, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        del made
        counter.kind = "key/value cache"
        more = spec.generation.max_new_tokens - 1
        for number, layer in enumerate(cache.layers):
            key, value = (one.new_empty(*one.shape[:2], more, one.shape[3]) for one in (layer.keys, layer.values))
            cache.update(key, value, number)
        counter.kind = "activations"
        mask = torch.ones((rows, length + more + 1), dtype=torch.int64)
        model(tokens[:, :1], attention_mask=mask, past_key_values=cache, use_cache=True)
    return [f"{rows} prompts of {length} tokens, answers of {spec.generation.max_new_tokens}; adapters left out"]


def tell_kinds(counter: StorageCounter, model: Any) -> None:
    """Let `counter` tell the kind of a new tensor by its maker or its width."""
    vocabulary = model.get_input_embeddings().num_embeddings

    def kind_of(tensor: Tensor, frame: FrameType | None) -> str | None:
        if counter.kind in ("weights", "optimizer"):
            return None
        for _ in range(_FRAMES):
            if frame is None:
                break
            kind = fake_sharding.kind_by_maker(frame)
            if kind is not None:
                return kind
            if frame.f_code.co_filename.endswith("transformers/cache_utils.py"):
                return "key/value cache"
            frame = frame.f_back
        has_width = tensor.dim() > 1 and tensor.shape[-1] == vocabulary and tensor.is_floating_point()
        return "logits" if has_width and counter.kind == "activations" else None

    counter.classify = kind_of


@contextlib.contextmanager
def numbers() -> Iterator[None]:
    """Lists of ones, and modules that take other tensors in place of theirs (torch refuses that of FakeTensors)."""

    def swapped(one: Tensor, other: Tensor) -> None:
        one.data = other.data

    ones = patch.object(FakeTensor, "tolist", lambda tensor: [1.0] * tensor.numel())
    with ones, patch.object(torch.utils, "swap_tensors", swapped):
        yield


if __name__ == "__main__":
    serve(trace, FineTuneStageSpec)
