"""A rank of a stage, run without memory, devices or other ranks (`planning.tracing`).

The model, its layers, the backward pass, the communication and the optimizer are those of a run. Tensors are torch's
FakeTensors, which have a shape and a type but no bytes; process groups are torch's fake ones, which answer at once;
what the host reads from a tensor (a norm, a loss) is 1. Bytes are counted by `worker.ranks.storage_counter`.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.core.rank_trace import RankTrace
from hpclm.core.spec import StageSpec
from hpclm.data.ranks.batches import GenerationBatch, TrainingBatch
from hpclm.data.ranks.packed_layout import Layout
from hpclm.engines.megatron.ranks import cpu_standins
from hpclm.planning.megatron_memory import in_flight
from hpclm.training.ranks.rank_tracing import counted, kernels_of_gpus, without_bytes
from hpclm.training.ranks.tracer_program import serve
from hpclm.worker.ranks.storage_counter import StorageCounter

# Who makes a tensor, where that says what it is for.
_MAKERS = {
    "tensor_parallel/mappings.py": "communication",
    "pipeline_parallel/p2p_communication.py": "communication",
    "torch/distributed/distributed_c10d.py": "communication",
    "formats/ranks/staging.py": "optimizer",  # offloaded
}
_CACHE_MAKER = "_allocate"  # of `key_value_cache`
_FRAMES = 8


def trace(spec: StageSpec, rank: int) -> RankTrace:
    """Run a step (or one batch of answers) of this rank. What is wrong with shapes raises as it would in a run."""
    began = time.perf_counter()
    on_gpu = spec.device == "gpu"
    spec = replace(spec, device="cpu")
    if on_gpu:
        # flash kernels drop within the kernel; what stands in for them here would keep every score for it
        spec = replace(spec, model=replace(spec.model, attention_dropout=0.0))
    cpu_standins.install()
    from hpclm.engines.megatron.ranks import groups as process_groups

    groups = process_groups.initialize(FakeStore(), rank, spec.parallel, torch.device("cpu"), 1, backend="fake")
    counter = StorageCounter()
    _tell_kinds(counter, spec)
    counter.elsewhere = frozenset({"optimizer"} if spec.optim.offload else ())
    with without_bytes(FakeTensorMode(), counter), _lists_of_ones(spec), _no_random_states(), kernels_of_gpus():
        assumed = (_answers if spec.task == "evaluate" else _steps)(spec, groups, counter)
    if spec.model.num_moe_experts is not None:
        assumed = [*assumed, "experts that have as many tokens each"]
    if counter.most_elsewhere:
        assumed = [*assumed, f"the optimizer is in host memory: {counter.most_elsewhere / 2**30:.1f} GiB, not counted"]
    found = counted(counter, spec.stage, rank, began, assumed, on_gpu=on_gpu, pipeline=groups.pipeline_rank)
    dist.destroy_process_group()
    return found


def _steps(spec: StageSpec, groups: Any, counter: StorageCounter) -> list[str]:
    """A step in which the optimizer has its moments."""
    from hpclm.engines.megatron.ranks.training import TrainingSteps

    counter.kind = "weights"
    models, batch, assumed = (_prompt_learning if spec.task != "pretrain" else _pretraining)(spec, groups)
    batches = _Batches([batch] * _micro_batches(spec, groups.pipeline_rank))
    counter.kind = "gradients"
    ignored = SimpleNamespace(requested=False)
    trainer = TrainingSteps(spec, groups, models, batches, ignored)  # type: ignore[arg-type]
    optimizer = trainer.optimizer
    buffers = [buffer for one in trainer.models for buffer in (*one.buffers, *one.expert_parallel_buffers)]
    counter.mark((buffer.param_data for buffer in buffers if buffer.param_data is not None), "weights")
    counter.mark((master for _, master in optimizer.rounded), "optimizer")
    # of a step before it only the optimizer's moments are left
    counter.kind = "optimizer"
    optimizer.step(0.0)
    counter.kind = "activations"
    trainer.step(0)
    return assumed


def _micro_batches(spec: StageSpec, stage: int) -> int:
    """As many as are under way at once in a pipeline stage, and one more; two rounds of the interleaved schedule."""
    interleaved = spec.parallel.virtual_pipeline > 1
    needed = 2 * spec.parallel.pipeline if interleaved else in_flight(spec.parallel, spec.batch, stage) + 1
    return min(spec.batch.gradient_accumulation_steps, needed)


def _pretraining(spec: StageSpec, groups: Any) -> tuple[list[Any], TrainingBatch, list[str]]:
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.stage_models import config_for

    assert spec.pretraining_length is not None
    config = _balanced(config_for(_context(spec, groups), variable_lengths=False))
    parts = [build_gpt(spec.model, config, groups, spec.backends, chunk) for chunk in groups.chunks]
    shape = (spec.batch.micro_batch_size, spec.pretraining_length // spec.parallel.context)
    numbers = torch.zeros(shape, dtype=torch.int64)
    batch = TrainingBatch(
        tokens=numbers, labels=numbers.clone(), position_ids=numbers.clone(), loss_mask=torch.ones(shape)
    )
    return [LanguageModel(config, gpt, None, frozen=False) for gpt in parts], batch.to(groups.device), []


def _prompt_learning(spec: StageSpec, groups: Any) -> tuple[list[Any], TrainingBatch, list[str]]:
    from hpclm.adapters.ranks.building import build_prompts
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.stage_models import config_for

    assert spec.data is not None
    config = _balanced(config_for(_context(spec, groups), variable_lengths=True, frozen=True))
    gpt = build_gpt(spec.model, config, groups, spec.backends)
    prompts = None
    if groups.is_first_stage:
        card = PromptsCard(spec.task, spec.prompt, spec.templates)
        prompts = build_prompts(card, config, spec.trainer.seed, groups.device)
    rows, each = spec.batch.micro_batch_size, spec.data.max_seq_length - 1
    multiple = spec.parallel.tensor if spec.parallel.sequence_parallel else 1
    length = -(-rows * each // multiple) * multiple
    numbers = torch.zeros((1, length), dtype=torch.int64)
    batch = TrainingBatch(
        tokens=numbers,
        labels=numbers.clone(),
        position_ids=numbers.clone(),
        virtual_index=numbers.clone(),
        task=numbers.clone(),
        loss_mask=torch.ones((1, length)),
        loss_positions=torch.zeros(rows * each, dtype=torch.int64),
        real_tokens=rows * each,
        layout=Layout.make(0, [each] * rows, length),
    )
    assumed = [f"{rows} rows of {spec.data.max_seq_length} tokens that share no prefix, a loss at each of them"]
    return [LanguageModel(config, gpt, prompts, frozen=True)], batch.to(groups.device), assumed


def _answers(spec: StageSpec, groups: Any, counter: StorageCounter) -> list[str]:
    """The prompts of one batch, and one token more."""
    from hpclm.adapters.ranks.building import build_prompts
    from hpclm.engines.megatron.ranks.generation import Generator
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.stage_models import config_for

    assert spec.generation is not None
    assert spec.data is not None
    counter.kind = "weights"
    config = _balanced(config_for(_context(spec, groups), variable_lengths=True, generates=True))
    gpt = build_gpt(spec.model, config, groups, spec.backends)
    prompts = None
    if spec.prompts is not None and groups.is_first_stage:
        card = PromptsCard("prompt-tuning", None, spec.templates)
        prompts = build_prompts(card, config, spec.trainer.seed, groups.device)
    counter.kind = "activations"
    room = spec.model.max_position_embeddings - spec.generation.max_new_tokens
    rows, length = spec.generation.batch_size, min(spec.data.max_seq_length, room)
    numbers = torch.zeros((rows, length), dtype=torch.int64)
    batch = GenerationBatch(
        tokens=numbers,
        position_ids=numbers.clone(),
        virtual_index=numbers.clone(),
        task=torch.zeros(rows, dtype=torch.int64),
        lengths=(length,) * rows,
    )
    model = LanguageModel(config, gpt, prompts, frozen=True)
    # torch's inference mode and FakeTensors do not go together
    answer = Generator(model, groups, spec.generation, vocab_size=spec.model.vocab_size, eos_id=_END, trains_on=True)
    answer(batch.to(groups.device), range(rows))
    return [f"{rows} prompts of {length} tokens"]


def _balanced(config: Any) -> Any:
    """Every expert is given as many tokens, which is the one number of them that needs no router."""
    if config.num_moe_experts is not None:
        config.moe_expert_capacity_factor, config.moe_pad_expert_input_to_capacity = 1.0, True
    return config


def _context(spec: StageSpec, groups: Any) -> Any:
    return SimpleNamespace(spec=spec, groups=groups)


class _Batches:
    """The same micro-batches in every step (see `training.Batches`)."""

    steps_per_epoch = 1

    def __init__(self, micro_batches: list[TrainingBatch]) -> None:
        self.micro_batches = micro_batches

    def train(self, step: int) -> list[TrainingBatch]:
        return self.micro_batches

    def weight(self, step: int) -> None:
        """Does not change what is held."""

    def validation(self) -> Iterator[list[TrainingBatch]]:
        return iter(())


def _tell_kinds(counter: StorageCounter, spec: StageSpec) -> None:
    """Let `counter` tell the kind of a new tensor by its maker or its width."""
    model, tensor = spec.model, spec.parallel.tensor
    widths = {model.padded_vocab_size, model.padded_vocab_size // tensor, model.vocab_size}
    widths -= {model.ffn_hidden_size, model.ffn_hidden_size // tensor, model.hidden_size}  # of toys

    def kind_of(tensor: Tensor, frame: FrameType | None) -> str | None:
        for _ in range(_FRAMES):
            if frame is None:
                break
            if frame.f_code.co_name == _CACHE_MAKER:
                return "key/value cache"
            name = frame.f_code.co_filename
            for ending, kind in _MAKERS.items():
                if name.endswith(ending):
                    return kind
            frame = frame.f_back
        has_width = tensor.dim() > 1 and tensor.shape[-1] in widths and tensor.is_floating_point()
        return "logits" if has_width and counter.kind == "activations" else None

    counter.classify = kind_of


_END = 1  # what a list of tokens without bytes holds


@contextlib.contextmanager
def _lists_of_ones(spec: StageSpec) -> Iterator[None]:
    """`tolist` gives ones; where megatron-core's stages tell each other a shape, the shape that this batch has, and
    where experts share tokens, equal shares. The first tokens of an answer do not end it."""
    asked = 0

    def tolist(tensor: Tensor) -> Any:
        nonlocal asked
        caller = sys._getframe(1)
        if caller.f_code.co_name == "_communicate_shapes":
            return _between_stages(spec)
        if caller.f_code.co_filename.endswith("moe/experts.py"):
            given = len(caller.f_locals["permuted_local_hidden_states"])
            return [given // tensor.numel()] * tensor.numel()
        asked += 1
        number = 1.0 if tensor.dtype.is_floating_point else (_END if asked > 1 else 0)
        return [number] * tensor.numel()

    with patch.object(FakeTensor, "tolist", tolist):
        yield


@contextlib.contextmanager
def _no_random_states() -> Iterator[None]:
    """Nothing is drawn, so no generator has a state to save and to set."""
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    from hpclm.engines.megatron.ranks import training

    fork = lambda *ignored, **also: contextlib.nullcontext()  # noqa: E731 - a method
    with patch.object(CudaRNGStatesTracker, "fork", fork), patch.object(training, "seed_step", lambda *ignored: None):
        yield


def _between_stages(spec: StageSpec) -> list[int]:
    """The shape [s, b, h] of what a stage sends to the next in prompt learning."""
    assert spec.data is not None
    multiple = spec.parallel.tensor if spec.parallel.sequence_parallel else 1
    length = -(-spec.batch.micro_batch_size * (spec.data.max_seq_length - 1) // multiple)
    return [length, 1, spec.model.hidden_size]


def _load() -> None:
    """What `trace` imports, in the order in which a rank does."""
    cpu_standins.install()
    for name in ("groups", "training", "language_model", "stage_models", "generation"):
        importlib.import_module(f"hpclm.engines.megatron.ranks.{name}")


if __name__ == "__main__":
    _load()
    serve(trace, StageSpec)
