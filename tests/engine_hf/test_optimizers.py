"""Optimizers compute what their papers say, with parameter groups, under every sharding."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from hpclm.core.spec import OptimizerName, OptimSpec
from hpclm.engines.hf.ranks import optimizers
from tests.engine_hf.conftest import Workshop
from tests.engine_hf.test_sharding import same
from tests.support.engine_harness import losses

RATE, DECAY, B1, B2, EPS = 0.01, 0.1, 0.9, 0.99, 1e-6
State = dict[str, Tensor]


def adam(w: Tensor, g: Tensor, s: State, step: int, decay: float) -> Tensor:
    """Kingma and Ba 2015, algorithm 1, with the decay in the gradient."""
    return w - RATE * _adam(w, g + decay * w, s, step)


def adamw(w: Tensor, g: Tensor, s: State, step: int, decay: float) -> Tensor:
    """Loshchilov and Hutter 2019, algorithm 2."""
    return w * (1 - RATE * decay) - RATE * _adam(w, g, s, step)


def _adam(w: Tensor, g: Tensor, s: State, step: int) -> Tensor:
    s["m"] = B1 * s.get("m", torch.zeros_like(w)) + (1 - B1) * g
    s["v"] = B2 * s.get("v", torch.zeros_like(w)) + (1 - B2) * g * g
    made: Tensor = s["m"] / (1 - B1**step) / ((s["v"] / (1 - B2**step)).sqrt() + EPS)
    return made


def lion(w: Tensor, g: Tensor, s: State, step: int, decay: float) -> Tensor:
    """Chen et al. 2023 (arXiv:2302.06675), algorithm 2."""
    m = s.get("m", torch.zeros_like(w))
    s["m"] = B2 * m + (1 - B2) * g
    return w * (1 - RATE * decay) - RATE * torch.sign(B1 * m + (1 - B1) * g)


def lamb(w: Tensor, g: Tensor, s: State, step: int, decay: float) -> Tensor:
    """You et al. 2020 (arXiv:1904.00962), algorithm 2."""
    update = _adam(w, g, s, step) + decay * w
    made: Tensor = w - RATE * (w.norm() / update.norm()) * update
    return made


def sgd(w: Tensor, g: Tensor, s: State, step: int, decay: float) -> Tensor:
    """With momentum."""
    g = g + decay * w
    s["m"] = g if step == 1 else B1 * s["m"] + g
    return w - RATE * s["m"]


REFERENCES: dict[str, Callable[..., Tensor]] = {"adam": adam, "adamw": adamw, "lion": lion, "lamb": lamb, "sgd": sgd}


@pytest.mark.parametrize("name", REFERENCES)
def test_updates_are_those_of_the_papers(name: str) -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5))
    spec = OptimSpec(RATE, weight_decay=DECAY, beta1=B1, beta2=B2, epsilon=EPS, name=cast(OptimizerName, name))
    made = optimizers.build(spec, [("weight", weight), ("bias", bias)], torch.device("cpu"))
    wanted = [one.detach().clone() for one in (weight, bias)]
    states: list[State] = [{}, {}]
    for step in range(1, 6):
        for group in made.param_groups:
            group["lr"] = RATE
        for number, one in enumerate((weight, bias)):
            one.grad = torch.randn_like(one)
            # neither biases nor norms decay
            decay = DECAY if number == 0 else 0.0
            wanted[number] = REFERENCES[name](wanted[number], one.grad.clone(), states[number], step, decay)
        made.step()
    for one, value in zip((weight, bias), wanted, strict=True):
        assert (one.detach() - value).abs().max() < 2e-6


def test_adafactor_is_torchs() -> None:
    torch.manual_seed(0)
    shapes = ((5, 3), (5,), (2, 4, 3))
    ours, theirs = ([nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one)
    spec = OptimSpec(RATE, weight_decay=DECAY, name="adafactor")
    made = optimizers.build(spec, [(str(number), one) for number, one in enumerate(ours)], torch.device("cpu"))
    expected = torch.optim.Adafactor(
        [{"params": [theirs[0], theirs[2]], "weight_decay": DECAY}, {"params": [theirs[1]], "weight_decay": 0.0}],
        lr=RATE, foreach=False,
    )  # fmt: skip
    for _ in range(5):
        for group in made.param_groups:
            group["lr"] = RATE
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        made.step()
        expected.step()  # type: ignore[no-untyped-call]
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-6


def test_every_optimizer_of_a_recipe_is_there() -> None:
    from typing import get_args

    assert set(get_args(OptimizerName)) == set(optimizers.OPTIMIZERS)
    assert importlib.util.find_spec("lion_pytorch") is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("adam", "fsdp"), ("adam", "zero2"), ("lion", "fsdp"), ("lion", "zero3"), ("lamb", "fsdp"), ("sgd", "fsdp"),
        ("sgd", "zero1"), ("adafactor", "ddp"), ("adafactor", "fsdp"), ("lamb", "zero1"), ("lamb", "zero3"),
        ("adafactor", "zero2"), ("adafactor", "zero3"),
    ],
)  # fmt: skip
def test_sharding_changes_no_optimizer(shop: Workshop, name: str, strategy: str) -> None:
    how: dict[str, Any] = {"optimizer": name, "lr": {"sgd": 1e-2, "lamb": 1e-2}.get(name, 1e-3)}
    alone = shop.run(**how)
    assert losses(alone)[-1] < losses(alone)[0]
    same(shop.run(**how, strategy=strategy, ranks=2), alone, tolerance=1e-5)
