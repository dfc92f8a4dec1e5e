"""The optimizer is torch's AdamW on Megatron's gradients; the schedule and the loss scale are as documented."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from hpclm.core.learning_rate import learning_rate
from hpclm.core.spec import OptimSpec
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.engines.megatron.ranks.masked_loss import masked_mean
from hpclm.engines.megatron.ranks.optimizer import Optimizer
from hpclm.engines.megatron.ranks.parameter_parts import whole_parameters
from hpclm.training.ranks.loss_scale import LossScale

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIM = OptimSpec(lr=0.1, weight_decay=0.1, beta1=0.9, beta2=0.98)


def twin_of(module: torch.nn.Module) -> torch.optim.AdamW:
    decay = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.98), eps=1e-8)


@pytest.mark.parametrize("clip", [0.5, 100.0, 0.0])
def test_steps_are_adamws_with_clipping(alone: Groups, clip: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer, twin = Optimizer(whole_parameters(ours), OPTIM, clip, alone.device, LossScale("fp32")), twin_of(theirs)
    for _ in range(5):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            gradient = torch.randn_like(a)
            a.main_grad, b.grad = gradient.clone(), gradient.clone()  # type: ignore[attr-defined]
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or math.inf)
        assert optimizer.step(0.1) == pytest.approx(expected.item(), rel=1e-6)
        twin.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bf16_weights_follow_fp32_masters(alone: Groups) -> None:
    module = torch.nn.Linear(4, 4, bias=False).bfloat16()
    optimizer = Optimizer(
        whole_parameters(module), OptimSpec(lr=1e-4, weight_decay=0.0), 0.0, alone.device, LossScale("bf16")
    )
    start = optimizer.masters[0].clone()
    for _ in range(3):
        module.weight.main_grad = torch.ones(4, 4)  # type: ignore[attr-defined]
        optimizer.step(1e-4)
    # steps far below bf16's resolution add up in the masters
    torch.testing.assert_close(start - optimizer.masters[0], torch.full((4, 4), 3e-4), rtol=1e-3, atol=0)
    assert torch.equal(module.weight, optimizer.masters[0].bfloat16())


def test_a_diverged_step_is_an_error_in_words(alone: Groups) -> None:
    module = torch.nn.Linear(2, 2)
    optimizer = Optimizer(whole_parameters(module), OPTIM, 1.0, alone.device, LossScale("fp32"))
    for parameter in module.parameters():
        parameter.main_grad = torch.full_like(parameter, math.nan)  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match=r"the training diverged; lower optim\.lr"):
        optimizer.step(0.1)


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale(alone: Groups) -> None:
    module = torch.nn.Linear(2, 2)
    scale = LossScale("fp16")
    optimizer = Optimizer(whole_parameters(module), OPTIM, 1.0, alone.device, scale)
    before = module.weight.detach().clone()
    for parameter in module.parameters():
        parameter.main_grad = torch.full_like(parameter, math.inf)  # type: ignore[attr-defined]
    optimizer.step(0.1)
    assert torch.equal(module.weight, before)
    assert (scale.scale, optimizer.updates) == (2.0**32, 0), "the first overflow may be the batch's fault"
    scale.update(overflow=True)
    assert scale.scale == 2.0**31
    for _ in range(LossScale.GROWTH_STEPS):
        scale.update(overflow=False)
    assert scale.scale == 2.0**32
    again = LossScale("fp16")
    again.restore(scale.state())
    assert again.state() == scale.state()


def test_the_loss_scale_is_megatrons(alone: Groups) -> None:
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler

    theirs = DynamicGradScaler(2.0**32, 1.0, 2.0, 0.5, LossScale.GROWTH_STEPS, LossScale.HYSTERESIS)
    ours, draw = LossScale("fp16"), random.Random(1)
    for likely in (0.9, 0.001, 0.5, 0.0, 0.01):
        for _ in range(1500):
            overflow = draw.random() < likely
            ours.update(overflow=overflow)
            theirs.update(overflow)
            assert ours.scale == theirs.scale.item()


def test_the_rate_warms_up_falls_and_stays() -> None:
    optim = OptimSpec(lr=1.0, min_lr=0.1, warmup_steps=4, constant_steps=5, schedule="cosine")
    rates = [learning_rate(optim, step, 25) for step in range(25)]
    # what NeMo's own CosineAnnealing of r1.22 gives for the same numbers
    assert rates[:7] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 0.9913533761814537, 0.9657457896300791])
    assert [learning_rate(replace(optim, constant_steps=0), step, 25) for step in range(5)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0]
    )
    ratios = OptimSpec(lr=1.0, min_lr=0.1, warmup_ratio=0.19, constant_ratio=0.2, schedule="cosine")
    assert [learning_rate(ratios, step, 25) for step in range(25)] == rates
    assert rates[12] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[20:] == [pytest.approx(0.1)] * 5
    linear = OptimSpec(lr=1.0, schedule="linear")
    assert [learning_rate(linear, step, 4) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert learning_rate(OptimSpec(lr=1.0, schedule="constant"), 99, 100) == 1.0


def test_the_curves_are_megatrons() -> None:
    """Every style, warm-up, length of decay and annealing against megatron-core's own scheduler."""
    draw = random.Random(4)
    styles = {"cosine": "cosine", "linear": "linear", "constant": "constant"}
    styles |= {"inverse-square-root": "inverse-square-root", "wsd": "WSD"}
    for _ in range(300):
        total, constant = draw.randrange(8, 60), draw.choice([0, 0, 5])
        name = draw.choice(list(styles))
        warmup, anneal = draw.choice([0, 1, 3]), draw.choice([1, 2, 4]) if name == "wsd" else 0
        how = draw.choice(["linear", "cosine", "exponential", "minus_sqrt"])
        optim = OptimSpec(
            lr=1.0,
            min_lr=draw.choice([0.0, 0.1]),
            warmup_steps=warmup,
            constant_steps=constant,
            schedule=name,  # type: ignore[arg-type] # one of its words
            from_zero=True,
            anneal_steps=anneal,
            anneal=how,  # type: ignore[arg-type] # one of its words
        )
        theirs = OptimizerParamScheduler(
            SimpleNamespace(param_groups=[]),
            init_lr=0.0,
            max_lr=optim.lr,
            min_lr=optim.min_lr,
            lr_warmup_steps=warmup,
            lr_decay_steps=total - constant,
            lr_decay_style=styles[name],
            start_wd=0.0,
            end_wd=0.0,
            wd_incr_steps=1,
            wd_incr_style="constant",
            wsd_decay_steps=anneal,
            lr_wsd_decay_style=how,
        )
        for step in range(total):
            theirs.num_steps = step
            assert learning_rate(optim, step, total) == pytest.approx(theirs.get_lr({}), abs=1e-12), (optim, step)


def test_the_loss_is_the_mean_over_what_counts() -> None:
    losses, mask = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    loss, sums = masked_mean(mask, losses)
    assert (loss.item(), sums["total"].item(), sums["weight"].item()) == (3.0, 6.0, 2.0)
    assert masked_mean(torch.zeros(1, 3), losses)[0].item() == 0.0
