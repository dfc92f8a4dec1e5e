"""P-tuning (Liu et al. 2021, arXiv:2103.10385): virtual tokens come out of a small trained encoder.

Encoders follow NeMo's nemo/collections/nlp/modules/common/prompt_encoder.py; `mlp` (three layers in PEFT) and `lstm`
are also PEFT's peft/tuners/p_tuning/model.py. Each task has its own input table and all share the encoder. NeMo told
tasks apart by writing the task name's word embeddings over the first input rows, so renaming a task changed its
results; here a name is only a name.
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

from hpclm.plan.spec import PromptSpec, TaskTemplate
from hpclm.worker.prompts.base import SoftPrompts, linear_bound, uniform
from hpclm.worker.prompts.prompt_tuning import table_name


class PTuning(SoftPrompts):
    """Input tables [virtual tokens, hidden] (one a task) and the encoder that turns them into virtual tokens."""

    def __init__(self, config: TransformerConfig, templates: list[TaskTemplate], prompt: PromptSpec) -> None:
        super().__init__(config=config)
        hidden, inner = config.hidden_size, prompt.encoder_hidden
        self.init_std = prompt.encoder_init_std
        self.inputs = nn.ParameterDict(
            {table_name(t): nn.Parameter(torch.empty(t.total_virtual_tokens, hidden)) for t in templates}
        )
        if prompt.encoder == "tpmlp":
            self.encoder: nn.Module = ParallelMlp(config, hidden, inner, prompt.encoder_init_std)
        elif prompt.encoder == "mlp":
            self.encoder = mlp(hidden, inner, prompt.encoder_layers)
        else:
            self.encoder = LstmEncoder(hidden, inner, prompt.encoder_layers, prompt.encoder_dropout)

    def forward(self) -> Tensor:
        return self.encoder(torch.stack(list(self.inputs.values())))

    def draw(self, shard: ShardedTensor, generator: torch.Generator) -> Tensor:
        shape = shard.global_shape
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
        states, _ = self.first(inputs)
        states, _ = self.second(nn.functional.gelu(states, approximate="tanh"))
        return states

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        return {
            **self.first.sharded_state_dict(f"{prefix}first.", sharded_offsets, metadata),
            **self.second.sharded_state_dict(f"{prefix}second.", sharded_offsets, metadata),
        }


class LstmEncoder(nn.Module):
    """Bidirectional LSTM over the virtual tokens, then Linear(2h, 2h)-ReLU-Linear(2h, hidden)."""

    def __init__(self, hidden: int, inner: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden, inner, layers, dropout=dropout, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(2 * inner, 2 * inner), nn.ReLU(), nn.Linear(2 * inner, hidden))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.lstm(inputs)[0])


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
