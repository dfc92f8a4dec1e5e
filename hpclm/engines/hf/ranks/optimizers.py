"""Optimizers by name: torch's, our own LAMB and Adafactor, and those of packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpclm.core.spec import OptimSpec
from hpclm.engines.hf.ranks.adafactor import Adafactor
from hpclm.engines.hf.ranks.lamb import Lamb

Named = list[tuple[str, nn.Parameter]]


def build(spec: OptimSpec, named: Named, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer over these parameters. Its rate is set at every step.

    Biases and one-dimensional weights (norms) do not decay, as in transformers' Trainer. Raises ImportError for a
    package that is not there.
    """
    decaying = [parameter for _, parameter in named if _dimensions(parameter) > 1]
    others = [parameter for _, parameter in named if _dimensions(parameter) <= 1]
    groups = [{"params": decaying, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return OPTIMIZERS[spec.name]([group for group in groups if group["params"]], spec, device)


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole weight: what ZeRO-3 leaves on a rank is flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def _adamw(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)


def _adam(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=0.0, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)


def _sgd(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=spec.beta1)


def _lion(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    from lion_pytorch import Lion

    made: torch.optim.Optimizer = Lion(groups, lr=1e-30, betas=(spec.beta1, spec.beta2))
    return made


def _lamb(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return Lamb(groups, lr=0.0, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)


def _adafactor(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return Adafactor(groups, lr=0.0)


def _adamw_8bit(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(groups, lr=0.0, betas=(spec.beta1, spec.beta2), eps=spec.epsilon)
    return made


OPTIMIZERS: dict[str, Callable[[Any, OptimSpec, torch.device], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "lamb": _lamb,
    "adafactor": _adafactor,
    "adamw-8bit": _adamw_8bit,
}
