"""Models of the engine in a world of one rank (fixture `alone`), with weights drawn from a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import ModelSpec
from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from tests.support.engine_harness import SMALL

DEEP = replace(SMALL, num_layers=4)


def gpt_of(model: ModelSpec, alone: Groups, seed: int | None = 3) -> Any:
    config = transformer_config(model, ParallelSpec(1, 1, 1, 1, 1, 1), "fp32", alone.device, variable_lengths=True)
    gpt = build_gpt(model, config, alone)
    if seed is not None:
        initialize_weights(gpt, model, seed)
        with torch.no_grad():
            for parameter in gpt.parameters():  # biases and norms too
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
    return gpt


def state_of(gpt: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in gpt.state_dict().items() if isinstance(value, torch.Tensor)}


def logits(gpt: Any) -> torch.Tensor:
    tokens = torch.arange(12).view(2, 6) + 5
    with torch.no_grad():
        found: torch.Tensor = gpt.eval()(tokens, torch.arange(6).expand(2, 6), None)
    return found
