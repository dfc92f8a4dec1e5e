"""P-tuning (Liu et al. 2021, arXiv:2103.10385): virtual tokens are computed by a small trained encoder.

Encoders follow NeMo's nemo/collections/nlp/modules/common/prompt_encoder.py; `mlp` (three layers in PEFT) and `lstm`
are also PEFT's peft/tuners/p_tuning/model.py. Each task has its own input table and all share the encoder.

NeMo gives all tasks one input table and distinguishes them by writing the task name's word embeddings over its first
rows, so renaming a task changes its results. Here that is done only under `data.semantics: nemo` (`name_lengths`);
otherwise a name has no effect. (In NeMo a name shorter than another of its batch is also followed by the padding
token's embedding, which depends on the batch; not here.)
"""

from __future__ import annotations

import copy
import itertools
import math

import torch
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from hpclm.adapters.ranks.soft_prompts import SoftPrompts, linear_bound, table_name, uniform, xavier_normal
from hpclm.core.spec import PromptSpec, TaskTemplate

SHARED = "shared"


class PTuning(SoftPrompts):
    """Input tables [virtual tokens, hidden] (one a task) and the encoder that turns them into virtual tokens.

    Args:
        name_lengths: NeMo's way: one input table, whose first rows are a task's name, as many as here by task. They are
            part of a checkpoint; `set_name` gives them their values.
    """

    def __init__(
        self,
        config: TransformerConfig,
        templates: list[TaskTemplate],
        prompt: PromptSpec,
        frozen: frozenset[str] = frozenset(),
        name_lengths: dict[str, int] | None = None,
    ) -> None:
        super().__init__(config, templates, frozen)
        hidden, inner = config.hidden_size, prompt.encoder_hidden
        self.kind, self.init_std = prompt.encoder, prompt.encoder_init_std
        width = inner if prompt.encoder == "biglstm" else hidden
        rows = {table_name(template): template.total_virtual_tokens for template in self.trainable}
        self.task_names = nn.Module()
        self.by_name = name_lengths is not None
        if name_lengths is not None:
            for template in self.trainable:
                length = min(name_lengths[template.taskname], template.total_virtual_tokens)
                self.task_names.register_buffer(table_name(template), torch.zeros(length, hidden))
            rows = {SHARED: max(rows.values())}
        self.inputs = nn.ParameterDict({name: nn.Parameter(torch.empty(count, width)) for name, count in rows.items()})
        self.encoder = build_encoder(config, prompt)

    def tables(self) -> list[Tensor]:
        inputs = self._named_inputs() if self.by_name else list(self.inputs.values())
        return list(self.encoder(torch.stack(inputs)))

    def _named_inputs(self) -> list[Tensor]:
        """The shared input [n, width] of each task with its name's embeddings in front."""
        shared, tables = self.inputs[SHARED], []
        for template in self.trainable:
            name = self.task_names.get_buffer(table_name(template))
            if isinstance(self.encoder, LstmEncoder) and self.kind == "biglstm":
                # the name is as wide as the model: NeMo brings it to the encoder's width by its last layer's weight
                last = self.encoder.head[2]
                assert isinstance(last, nn.Linear)
                name = name @ last.weight
            tables.append(torch.cat([name, shared[len(name) :]]))
        return tables

    @torch.no_grad()
    def set_name(self, template: TaskTemplate, embeddings: Tensor) -> None:
        """Set the rows of a task's name to its tokens' word embeddings [n, hidden]."""
        rows = self.task_names.get_buffer(table_name(template))
        rows.copy_(embeddings[: len(rows)])

    def draw(self, shard: ShardedTensor, generator: torch.Generator) -> Tensor:
        shape = shard.global_shape
        if shard.key.startswith("prompts.task_names."):
            return torch.zeros(shape)
        if self.kind == "embedding":
            return xavier_normal(shape, generator)
        if shard.key.startswith("prompts.inputs."):
            return torch.randn(shape, generator=generator)
        if isinstance(self.encoder, ParallelMlp):
            if shard.key.endswith(".bias"):
                return torch.zeros(shape)
            return torch.randn(shape, generator=generator) * self.init_std
        return uniform(shape, self._bound(shard.key.removeprefix("prompts.encoder.")), generator)

    def _bound(self, name: str) -> float:
        """torch's default bound for a parameter of the encoder."""
        module_name, _, _ = name.rpartition(".")
        module = self.encoder.get_submodule(module_name)
        if isinstance(module, nn.LSTM):
            return 1.0 / math.sqrt(module.hidden_size)
        assert isinstance(module, nn.Linear)
        return linear_bound(module.in_features)


def build_encoder(config: TransformerConfig, prompt: PromptSpec) -> nn.Module:
    """[tasks, virtual tokens, width] → [tasks, virtual tokens, hidden]; width is `encoder_hidden` for `biglstm`, and
    else the model's hidden size. `embedding` is the inputs themselves, a table a task."""
    hidden, inner, layers = config.hidden_size, prompt.encoder_hidden, prompt.encoder_layers
    if prompt.encoder == "tpmlp":
        return ParallelMlp(config, hidden, inner, prompt.encoder_init_std)
    if prompt.encoder == "mlp":
        return mlp(hidden, inner, layers)
    if prompt.encoder == "lstm":
        return LstmEncoder(hidden, inner, hidden, layers, prompt.encoder_dropout)
    if prompt.encoder == "biglstm":
        return LstmEncoder(inner, inner // 2, hidden, layers, prompt.encoder_dropout)
    return nn.Identity()


class ParallelMlp(nn.Module):
    """NeMo's `tpmlp`: hidden → inner split over tensor-parallel ranks, tanh GELU, inner → hidden summed over them."""

    def __init__(self, config: TransformerConfig, hidden: int, inner: int, init_std: float) -> None:
        super().__init__()
        # The virtual tokens are whole on every rank, also under sequence parallelism, and fp32.
        own = _fp32_config(config)
        arguments = {"config": own, "init_method": lambda weight: weight, "bias": True, "skip_bias_add": False}
        self.first = tensor_parallel.ColumnParallelLinear(hidden, inner, gather_output=False, **arguments)
        self.second = tensor_parallel.RowParallelLinear(inner, hidden, input_is_parallel=True, **arguments)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor
        states, _ = self.first(inputs)
        states, _ = self.second(nn.functional.gelu(states, approximate="tanh"))
        return states

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, bool] | None = None,
    ) -> dict[str, ShardedTensor]:
        """megatron-core's; its default would treat a tensor-parallel layer's parts as whole tensors."""
        return {
            **self.first.sharded_state_dict(f"{prefix}first.", sharded_offsets, metadata),
            **self.second.sharded_state_dict(f"{prefix}second.", sharded_offsets, metadata),
        }


class LstmEncoder(nn.Module):
    """Bidirectional LSTM of width h over the virtual tokens, then Linear(2h, 2h)-ReLU-Linear(2h, outputs)."""

    def __init__(self, inputs: int, inner: int, outputs: int, layers: int, dropout: float) -> None:
        super().__init__()
        # torch warns about dropout after the last layer
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(inputs, inner, layers, dropout=between, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(2 * inner, 2 * inner), nn.ReLU(), nn.Linear(2 * inner, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.head(self.lstm(inputs)[0])
        return states


def mlp(hidden: int, inner: int, layers: int) -> nn.Sequential:
    """Linear-ReLU-…-Linear with `layers` linear layers, 2 at least."""
    widths = [hidden, *[inner] * (layers - 1), hidden]
    modules: list[nn.Module] = []
    for number, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        if number:
            modules.append(nn.ReLU())
        modules.append(nn.Linear(width_in, width_out))
    return nn.Sequential(*modules)


def _fp32_config(config: TransformerConfig) -> TransformerConfig:
    own = copy.copy(config)
    own.sequence_parallel = False
    own.params_dtype = torch.float32
    own.bf16 = own.fp16 = False
    return own
