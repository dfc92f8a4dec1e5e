"""Optimizers by name: torch's, our own LAMB and Adafactor, and those of packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hpclm.core.spec import OptimSpec
from hpclm.engines.hf.ranks.adafactor import Adafactor
from hpclm.engines.hf.ranks.flat_optimizers import FlatAdafactor, FlatLamb
from hpclm.engines.hf.ranks.lamb import Lamb

Named = list[tuple[str, nn.Parameter]]


def build(spec: OptimSpec, named: Named, device: torch.device, *, flat: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimizer over these parameters. Its rate is set at every step.

    Args:
        device: the rank's.
        flat: whether what is updated are flat tensors of many weights, as with ZeRO.

    Biases and one-dimensional weights (norms) do not decay, as in transformers' Trainer. Raises ImportError for a
    package that is not there.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for _, parameter in named:
        # torch's fused updates are of tensors that are all divided, or none is
        groups.setdefault((_dimensions(parameter) <= 1, isinstance(parameter, DTensor)), []).append(parameter)
    made = [
        {"params": members, "weight_decay": 0.0 if flat else spec.weight_decay}
        for (flat, _), members in sorted(groups.items())
    ]
    return (FLAT if flat and spec.name in FLAT else OPTIMIZERS)[spec.name](made, spec, device)


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


def _flat_lamb(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return FlatLamb(groups, device, (spec.beta1, spec.beta2), spec.epsilon)


def _flat_adafactor(groups: Any, spec: OptimSpec, device: torch.device) -> torch.optim.Optimizer:
    return FlatAdafactor(groups, device)


FLAT = {"lamb": _flat_lamb, "adafactor": _flat_adafactor}
OPTIMIZERS: dict[str, Callable[[Any, OptimSpec, torch.device], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "lamb": _lamb,
    "adafactor": _adafactor,
    "adamw-8bit": _adamw_8bit,
}
