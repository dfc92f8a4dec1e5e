"""How a model is trained over the ranks: the interface, and what the strategies share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpclm.engines.hf.ranks.document_batches import DocumentBatch
from hpclm.formats.ranks.tensor_shard import TensorShard

# Of an update that makes the optimizer's state and changes nothing. Lion refuses a rate of 0.
NO_RATE = 1e-30


class Sharding(Protocol):
    """Every method is collective.

    Attributes:
        optimizer_name: for the result.
    """

    optimizer_name: str

    def accumulate(self, batches: list[DocumentBatch], weight: float) -> Tensor:
        """Gradients of this rank's micro-batches; `weight` is the labels of all ranks. Returns the sum of its losses,
        fp64."""

    def update(self, rate: float) -> float:
        """One step of the optimizer. Returns the norm of all gradients, before they are clipped; with fp16 infinite
        where the step is left out. Raises FloatingPointError where no smaller loss scale would help."""

    def loss(self, batch: DocumentBatch) -> Tensor:
        """The sum of the losses, without gradients."""

    def shards(self, *, loading: bool = False) -> list[TensorShard]:
        """Trained weights and the optimizer's state of each; `loading`: to be filled, and not to be written."""

    def loaded(self) -> None:
        """What `shards` gave has been filled from a checkpoint."""

    def state(self) -> dict[str, Any]:
        """JSON-ready; `restore` takes it after `loaded`."""

    def restore(self, state: dict[str, Any]) -> None: ...

    def trained(self) -> dict[str, Tensor]:
        """Trained tensors, whole, by the model's names, on the CPU. For adapters, which are small."""


def trainables(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trained parameters by their names in the model, those of the loss model's parts without their place in it."""
    return [(plain_name(name), one) for name, one in module.named_parameters() if one.requires_grad]


def plain_name(name: str) -> str:
    """The name in transformers' model of a parameter of a `LossModel`, whatever has been put around it."""
    for wrapper in ("_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    return name.removeprefix("module.").removeprefix("model.")


def diverged(norm: float) -> FloatingPointError:
    """For gradients that are no numbers."""
    return FloatingPointError(f"the gradient norm is {norm}: the training diverged; lower optim.lr")


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Optimizers count their updates in the state of each parameter, or of each group."""
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = updates
    for state in optimizer.state.values():
        step = state.get("step")
        if isinstance(step, Tensor):
            step.fill_(float(updates))
        elif step is not None:
            state["step"] = updates


def clip_factor(norm: float, limit: float) -> float:
    """As torch.nn.utils.clip_grad_norm_ has it; 1 where nothing is clipped."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0


def is_last(batches: list[DocumentBatch]) -> Iterable[tuple[DocumentBatch, bool]]:
    """Each batch, and whether it is the last."""
    return ((batch, number == len(batches)) for number, batch in enumerate(batches, start=1))
