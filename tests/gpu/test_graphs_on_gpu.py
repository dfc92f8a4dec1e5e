"""CUDA graphs change no loss and no answer, and are really used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpclm.core.spec import ModelSpec, TrainerSpec
from tests.gpu.conftest import REHEARSES, Run
from tests.support.engine_harness import MODERN, SMALL, losses, predictions, stage_spec

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("model", [SMALL, MODERN], ids=["gpt", "llama"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_graphs_change_nothing(
    tmp_path: Path, rows: Path, run: Run, device: str, model: ModelSpec, precision: str
) -> None:
    found = {}
    base = str(run(stage_spec(tmp_path / "pretrain", rows, "pretrain", model=model), device).checkpoints)
    for name, function in (("graphs", None), ("kernels", "tests.gpu.without_graphs:main")):
        tuned_spec = stage_spec(tmp_path / f"ptune-{name}", rows, "p-tuning", model=model, base=base, steps=40)
        trainer = TrainerSpec(precision, max_steps=40, val_check_interval=20)  # type: ignore[arg-type]
        given = {} if function is None else {"function": function}
        tuned = run(replace(tuned_spec, trainer=trainer), device, **given)
        spec = stage_spec(tmp_path / f"answer-{name}", rows, "evaluate", model=model, base=base,
                          prompts=str(tuned.checkpoints))  # fmt: skip
        answered = run(replace(spec, trainer=replace(trainer, max_steps=None)), device, **given)
        found[name] = (losses(tuned), predictions(answered), tuned.attempt(1).log(0).read_text())
    with_graphs, kernels = found["graphs"], found["kernels"]
    assert with_graphs[0] == pytest.approx(kernels[0], rel=1e-5 if precision == "fp32" else 2e-2)
    same = sum(a == b for a, b in zip(with_graphs[1], kernels[1], strict=True))
    assert same >= (1.0 if precision == "fp32" else 0.8) * len(kernels[1])
    assert "CUDA graphs are off" not in with_graphs[2]
    if not REHEARSES and precision == "bf16":
        assert "captured as CUDA graphs" in with_graphs[2]
        assert "captured as CUDA graphs" not in kernels[2]
