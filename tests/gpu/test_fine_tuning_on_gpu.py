"""Engine hf on a GPU: the CPU's losses, every precision and sharding that one GPU allows, offloading, answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.fine_tune_spec import FineTuneStageSpec
from tests.gpu.conftest import REHEARSES, Run
from tests.support.engine_harness import losses, predictions, result
from tests.support.hf_harness import hf_spec, rows_in
from tests.support.hf_models import save_model

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("transformers", reason="engine hf needs transformers")
pytest.importorskip("peft", reason="engine hf needs peft")

Maker = Any


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    folder = tmp_path_factory.mktemp("fine-tuning")
    # heads as wide as flash kernels take them
    base = save_model(folder / "llama", head_dim=32)
    rows, made = rows_in(folder / "rows"), iter(range(1000))

    def spec(**how: Any) -> FineTuneStageSpec:
        return hf_spec(folder / f"stage-{next(made)}", base, rows, **how)

    return spec


@pytest.mark.parametrize("method", ["full", "lora", "p-tuning"])
def test_losses_are_the_cpus(make: Maker, run: Run, device: str, method: str) -> None:
    wanted = losses(run(make(method=method), "cpu"))
    assert losses(run(make(method=method), device)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp16"])
def test_every_precision_trains(make: Maker, run: Run, device: str, precision: str, method: str) -> None:
    if REHEARSES and precision == "fp16":
        pytest.skip("a CPU has no fp16 products of that size")
    exact = losses(run(make(method=method), device))
    steps = 60 if precision == "fp16" else 10
    found = losses(run(make(method=method, precision=precision, steps=steps), device))
    assert found[0] == pytest.approx(exact[0], rel=1e-2)
    assert found[-1] < found[0]


@pytest.mark.parametrize(
    ("strategy", "offload"),
    [("fsdp", "none"), ("fsdp", "all"), ("zero1", "none"), ("zero2", "optimizer"), ("zero3", "none"), ("zero3", "all")],
)
def test_shardings_train_the_same_on_one_gpu(make: Maker, run: Run, device: str, strategy: str, offload: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed")
    wanted = losses(run(make(), device))
    sharded = make(strategy=strategy, sharding={"offload": offload})
    assert losses(run(sharded, device)) == pytest.approx(wanted, rel=1e-4)


def test_moments_of_8_bits_train_almost_the_same(make: Maker, run: Run, device: str) -> None:
    pytest.importorskip("bitsandbytes", reason="adamw-8bit needs bitsandbytes")
    if REHEARSES:
        pytest.skip("a kernel of GPUs")
    found = [losses(run(make(optimizer=name), device)) for name in ("adamw", "adamw-8bit")]
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_packed_rows_see_themselves_alone_in_bf16(make: Maker, run: Run, device: str) -> None:
    """With flash kernels that take lengths, and by transformers' own masks."""
    spec = make(precision="bf16")
    own = run(spec, device)
    assert result(own)["rows_kept_apart_by"] == "documents"
    masked = make(precision="bf16")
    other = run(replace(masked, huggingface=replace(masked.huggingface, attention="sdpa")), device)
    assert losses(own) == pytest.approx(losses(other), rel=2e-2)


def test_answers_are_the_cpus(make: Maker, run: Run, device: str) -> None:
    tuned = run(make(method="lora", lr=1e-2), device)
    found = {}
    for where in ("cpu", device):
        spec = replace(make(), task="evaluate", base=str(tuned.checkpoints))
        paths = run(spec, where)
        found[where] = predictions(paths), Path(result(paths)["base"]).name
    (cpu, first), (gpu, second) = found["cpu"], found[device]
    assert first == second
    assert sum(a == b for a, b in zip(gpu, cpu, strict=True)) >= 0.8 * len(cpu)
