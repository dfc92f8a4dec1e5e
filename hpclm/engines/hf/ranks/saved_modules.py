"""Modules that are trained whole beside LoRA's factors (`modules_to_save`): PEFT puts a copy beside each."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from hpclm.engines.hf.ranks.whole_tensors import whole


def chosen(model: Any, names: Sequence[str]) -> list[nn.Module]:
    """The modules that these names mean to PEFT: by the ends of their own."""
    return [module for name, module in model.named_modules() if names and name.endswith(tuple(names))]


def copies(model: nn.Module) -> list[nn.Module]:
    """What PEFT has copied, and is trained."""
    from peft.utils import ModulesToSaveWrapper

    found = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    return [made for wrapper in found for made in wrapper.modules_to_save.values()]


@contextlib.contextmanager
def copied_whole() -> Iterator[None]:
    """What PEFT copies meanwhile (peft/utils/other.py) gets whole tensors in fp32, in place of a rank's part of them.
    Collective where they are divided."""
    from peft.utils import other

    with patch.object(other, "copy", SimpleNamespace(**{**vars(copy), "deepcopy": _copied})):
        yield


def _copied(given: Any) -> Any:
    if not isinstance(given, nn.Module):
        return copy.deepcopy(given)
    made: dict[int, Any] = {id(one): one.detach().clone() for one in given.buffers()}
    for parameter in given.parameters():
        made[id(parameter)] = nn.Parameter(whole(parameter.detach()).to(torch.float32, copy=True))
    return copy.deepcopy(given, made)
