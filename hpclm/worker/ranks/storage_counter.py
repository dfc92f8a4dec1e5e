"""Counts the bytes of tensors while code runs, by kind, and names the line where they are most.

It sees every operation of torch, also of tensors that have no memory (FakeTensorMode), so it tells what a run would
take without taking it. A storage counts from the operation that makes it until nothing refers to it, as a caching
allocator that reuses all it has would; fragmentation, kernels' workspaces and what CUDA and NCCL hold come on top.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

# CUDA's caching allocator gives out multiples of it.
_BLOCK = 512
_FOREIGN = ("/torch/", "<", "/functools.py", "/contextlib.py", "/cpu_standins.py")


@dataclass
class Peak:
    """The moment of the most bytes: what they were, by kind, and the innermost lines of code outside torch."""

    total: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)


class StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered.

    Attributes:
        kind: of what is made from now on.
        classify: a kind for a new tensor by what it is or by who makes it; None: `kind`.
        peak: so far.
        elsewhere: kinds that do not lie on the device, and are not part of the peak.
        most_elsewhere: the most bytes of these at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = "working"
        self.classify: Callable[[Tensor, FrameType], str | None] | None = None
        self.peak = Peak()
        self.elsewhere: frozenset[str] = frozenset()
        self.most_elsewhere = 0
        self.live: dict[str, int] = {}
        self._kinds: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._sizes: dict[int, tuple[str, int]] = {}

    @property
    def total(self) -> int:
        return sum(size for kind, size in self.live.items() if kind not in self.elsewhere)

    def mark(self, tensors: Iterable[Tensor | None], kind: str) -> None:
        """These tensors are of that kind, whenever they were made."""
        for tensor in tensors:
            if tensor is not None:
                self._see(tensor, kind)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        grown = False
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                grown = self._see(tensor, None, frame) or grown
        if grown:
            self._look(frame)
        return made

    def _see(self, tensor: Tensor, kind: str | None, frame: FrameType | None = None) -> bool:
        """Count the tensor's storage if it is new, or move it to another kind. Whether it is new."""
        # a FakeTensor that is asked for `device` asks the modes
        device = tensor.fake_device if type(tensor) is FakeTensor else tensor.device
        if tensor.layout is not torch.strided or device.type == "meta":
            return False
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            seen = [self._see(part, kind, frame) for name in names if isinstance(part := getattr(tensor, name), Tensor)]
            return any(seen)
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._sizes.get(key)
        if known is not None:
            if kind is not None and kind != known[0]:
                self._add(known[0], -known[1])
                self._add(kind, known[1])
                self._sizes[key] = (kind, known[1])
            return False
        size = _taken(storage)
        if kind is None and self.classify is not None and frame is not None:
            kind = self.classify(tensor, frame)
        self._sizes[key] = (kind or self.kind, size)
        self._add(kind or self.kind, size)
        weakref.finalize(storage, self._gone, key)
        return True

    def resized(self, storage: torch.UntypedStorage) -> None:
        """The storage was given another size in place, which is not an operation of torch's."""
        key = storage._cdata
        if key not in self._sizes:
            return
        kind, before = self._sizes[key]
        after = _taken(storage)
        self._sizes[key] = (kind, after)
        self._add(kind, after - before)
        if after > before:
            self._look(sys._getframe(1))

    def _look(self, frame: FrameType | None) -> None:
        total = self.total
        if total > self.peak.total:
            held = {kind: size for kind, size in self.live.items() if kind not in self.elsewhere}
            self.peak = Peak(total, held, _lines(frame))
        if self.elsewhere:
            self.most_elsewhere = max(self.most_elsewhere, sum(self.live.values()) - total)

    def _gone(self, key: int) -> None:
        kind, size = self._sizes.pop(key, ("", 0))
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self.live[kind] = self.live.get(kind, 0) + size


def _taken(storage: torch.UntypedStorage) -> int:
    return -(-storage.nbytes() // _BLOCK) * _BLOCK


def _lines(frame: FrameType | None) -> list[str]:
    """The innermost lines outside torch, innermost first: `file:line function`."""
    found: list[str] = []
    while frame is not None and len(found) < 3:
        name = frame.f_code.co_filename
        if is_ours(name) and frame.f_code.co_name != "__torch_dispatch__":
            found.append(f"{short(name)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return found


def is_ours(name: str) -> bool:
    """Whether a file is neither torch's nor the language's."""
    return not any(part in name for part in _FOREIGN)


def short(name: str) -> str:
    """A file's path from its package on."""
    for package in ("/hpclm/", "/megatron/"):
        if package in name:
            return package.strip("/") + "/" + name.rpartition(package)[2]
    return name.rpartition("/site-packages/")[2]
