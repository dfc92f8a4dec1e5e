"""Values of `megatron.arguments` are refused as Megatron-LM refuses them, before the queue."""

from __future__ import annotations

import random

import pytest

from hpclm.engines.megatron_lm import stage_layout
from hpclm.formats.megatron import argument_values


def wrong(*words: str) -> list[str]:
    """What is wrong with each flag of a command line."""
    found = []
    for _, flag, values in argument_values.given(words):
        said = argument_values.flags()[flag].wrong(values)
        found += [] if said is None else [f"{flag} {said}"]
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--use-flash-attn", "true"], "--use-flash-attn takes no value, and 'true' follows it"),
        (["--use-flash-attn=1"], "--use-flash-attn takes no value, and '1' follows it"),
        (["--num-workers"], "--num-workers needs a value"),
        (["--num-workers", "--use-flash-attn"], "--num-workers needs a value"),
        (["--num-workers", "two"], "--num-workers takes a whole number, and 'two' is none"),
        (["--num-workers", "2.0"], "--num-workers takes a whole number, and '2.0' is none"),
        (["--num-workers", "1", "2"], "--num-workers takes one value, and 2 follow it: 1 2"),
        (["--adam-eps", "small"], "--adam-eps takes a number, and 'small' is none"),
        (["--ckpt-format", "torch-dist"], "--ckpt-format does not take 'torch-dist'; did you mean torch_dist?"),
        (["--recompute-modules"], None),
        (["--cuda-graph-scope", "attn"], None),
        (["--num-workers", "-1", "--adam-eps=1e-8", "--ckpt-format", "torch_dist"], None),
        (["--recompute-modules", "core_attn", "mlp"], None),
    ],
)
def test_values_are_what_the_flag_takes(words: list[str], expected: str | None) -> None:
    assert wrong(*words) == ([] if expected is None else [expected])


def _layouts(draw: random.Random) -> tuple[str, int, int, int]:
    """A layout that may be wrong, and the pipeline stages, layers and predicted layers that it is for."""
    pipeline, layers, predicted = draw.choice([1, 2, 3, 4]), draw.randint(1, 6), draw.choice([0, 0, 0, 1, 2])
    if draw.random() < 0.4:
        text = "".join(draw.choice("EtttmL||,(*)23") for _ in range(draw.randint(1, 14)))
        return text, pipeline, layers, predicted
    text = "E" + "t" * layers + "m" * predicted + "L"
    for place in sorted(draw.choices(range(len(text) + 1), k=pipeline * draw.choice([1, 2]) - 1), reverse=True):
        text = text[:place] + "|" + text[place:]
    if draw.random() < 0.3:
        text = text.replace("tt", "t*2", 1)
    if draw.random() < 0.3:
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice("EtmL|,x(*)2") + text[place + 1 :]
    return text, pipeline, layers, predicted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_layouts_are_refused_as_megatron_core_refuses_them() -> None:
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    def accepted(text: str, pipeline: int, layers: int, predicted: int) -> bool:
        try:
            layout = PipelineParallelLayerLayout(text, pipeline)
            layout.validate_layer_layout(layers, predicted or None)
        except (AssertionError, NotImplementedError, IndexError):
            return False
        return True

    draw = random.Random(3)
    taken = 0
    for _ in range(3000):
        asked = _layouts(draw)
        assert (stage_layout.wrong(*asked) is None) == accepted(*asked), asked
        taken += accepted(*asked)
    assert 500 < taken < 2500


def test_a_layout_is_not_unrolled_without_end() -> None:
    assert "longer than" in str(stage_layout.wrong("E(t|)*99999999999L", 1, 1))
