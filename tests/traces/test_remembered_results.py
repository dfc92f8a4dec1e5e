"""An operation's remembered result is what FakeTensorMode gives: shape, layout in memory, type, and whose storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hpclm.training.ranks.remembered_results import RememberedResults

attention = torch.nn.functional.scaled_dot_product_attention
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda x, y: x + y,
    "an integer more": lambda x, y: x.int() + 1,
    "a truth value more": lambda x, y: x.bool() + True,
    "a number more": lambda x, y: x.int() + 1.0,
    "as many truth values": lambda x, y: x.bool() + 1,
    "product": lambda x, y: x @ y.T,
    "in place": lambda x, y: x.add_(y),
    "into another": lambda x, y: torch.mul(x, y, out=y),
    "into one of another size": lambda x, y: torch.mul(x, y, out=y.new_empty(0)),
    "view": lambda x, y: x.view(-1),
    "transposed": lambda x, y: x.T,
    "view of a view": lambda x, y: x[1:].T[2:],
    "part in place": lambda x, y: y[1:3].mul_(2),
    "strides": lambda x, y: x.as_strided((2, 2), (3, 1), 4),
    "many views": lambda x, y: x.chunk(2),
    "copies of parts": lambda x, y: torch.split_with_sizes_copy(x, [1, 3]),
    "joined": lambda x, y: torch.cat([x, y], dim=1),
    "joined otherwise": lambda x, y: torch.cat([x, y], dim=0),
    "layer norm": lambda x, y: torch.native_layer_norm(x, [6], None, None, 1e-5),
    "most": lambda x, y: x.topk(2),
    "by place": lambda x, y: x[torch.zeros(3, dtype=torch.int64)],
    "another type": lambda x, y: x.to(torch.bfloat16),
    "the same type": lambda x, y: x.to(torch.float32),
    "transposed copy": lambda x, y: x.T.clone(),
    "contiguous copy": lambda x, y: x.T.contiguous(),
    "of many": lambda x, y: torch._foreach_mul([x, y], 2.0),
    "of many in place": lambda x, y: torch._foreach_mul_([x, y], 2.0),
    "new": lambda x, y: torch.zeros(3, 5),
    "as large": lambda x, y: torch.empty_like(x.T),
    "another storage": lambda x, y: x.set_(y.untyped_storage()),
    "another size": lambda x, y: x.resize_(2, 2),
    "a dimension more": lambda x, y: x.unsqueeze_(0),
    "attention": lambda x, y: attention(x[None, None], y[None, None], y[None, None]),
    "from a list": lambda x, y: torch.tensor([1, 2]) + 1,
    "from another list": lambda x, y: torch.tensor([3.0]) * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_it_is_what_the_mode_gives(name: str) -> None:
    mode = FakeTensorMode()
    alone = _shown(mode, OPERATIONS[name])
    remembered = RememberedResults(mode)
    for _ in range(3):  # learned, and then answered twice
        assert _shown(mode, OPERATIONS[name], remembered) == alone


def test_an_answer_is_not_taken_for_that_to_another_question() -> None:
    mode = FakeTensorMode()
    remembered = RememberedResults(mode)
    for operation in (*OPERATIONS.values(), *reversed(OPERATIONS.values())):
        assert _shown(mode, operation, remembered) == _shown(mode, operation)


def test_what_torch_is_told_apart_from_arguments_counts() -> None:
    """The default type, inference mode, and values that are conjugate or negative by a bit alone."""
    mode = FakeTensorMode()
    with mode, RememberedResults(mode):
        for _ in range(2):
            assert torch.ones(2).dtype is torch.float32
            torch.set_default_dtype(torch.bfloat16)
            try:
                assert torch.ones(2).dtype is torch.bfloat16
                assert (torch.empty(2, dtype=torch.int32) / 2).dtype is torch.bfloat16
            finally:
                torch.set_default_dtype(torch.float32)
            number = torch.empty(4, dtype=torch.complex64)
            assert torch.conj(number).is_conj()
            assert torch.conj(number).imag.is_neg()
            states = torch.empty(4, 6)
            with torch.inference_mode():
                assert states.view(-1).shape == (24,)
                assert states.T.shape == (6, 4)


def test_what_is_refused_is_refused_again() -> None:
    mode = FakeTensorMode()
    with mode, RememberedResults(mode):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="reduction dim"):
                torch.empty(2, 3) @ torch.empty(2, 3)
            with pytest.raises(RuntimeError, match="shape"):
                torch.empty(2, 3).view(5)


def test_gradients_go_the_same_way() -> None:
    mode = FakeTensorMode()
    with mode, RememberedResults(mode):
        for _ in range(2):
            weight = torch.empty(4, 6, requires_grad=True)
            out = torch.nn.functional.linear(torch.empty(5, 6), weight).chunk(2, dim=-1)[1].relu()
            torch.autograd.backward([out.sum()])
            assert weight.grad is not None
            assert weight.grad.shape == (4, 6)
            states = weight.exp()
            total = states.mul_(2).sum()
            with pytest.raises(RuntimeError, match="modified by an inplace"):
                torch.autograd.backward([total])


def _shown(mode: FakeTensorMode, operation: Callable[[Tensor, Tensor], Any], remembered: Any = None) -> Any:
    with mode:
        x, y = torch.empty(4, 6), torch.empty(4, 6)
        if remembered is None:
            made = operation(x, y)
        else:
            with remembered:
                made = operation(x, y)
        parts = made if isinstance(made, tuple | list) else [made]
        return [type(made).__name__, *(_facts(one, x, y) for one in parts), _facts(x, x, y), _facts(y, x, y)]


def _facts(one: Any, x: Tensor, y: Tensor) -> Any:
    if not isinstance(one, Tensor):
        return one
    shares = [one.untyped_storage()._cdata == other.untyped_storage()._cdata for other in (x, y)]
    size = one.untyped_storage().nbytes()
    return tuple(one.shape), one.stride(), one.storage_offset(), one.dtype, one.device, shares, one is x, one is y, size
