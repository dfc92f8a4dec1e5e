"""The engine on a GPU: the same losses as on the CPU, every precision, resuming, memory as the trace says."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.exit_codes import ExitCode
from hpclm.core.parallel_spec import ParallelSpec, RecomputeSpec
from hpclm.core.records import to_dict
from hpclm.core.spec import BatchSpec, ModelSpec, StageSpec, TextData, TokenizerSpec, TrainerSpec
from tests.gpu.conftest import REHEARSES, Run, ended, forked
from tests.support.engine_harness import (
    MODERN,
    SMALL,
    checkpoint_bytes,
    losses,
    predictions,
    result,
    stage_spec,
)

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("model", [SMALL, MODERN, replace(MODERN, num_moe_experts=4)], ids=["gpt", "llama", "mixtral"])
def test_losses_are_the_cpus(tmp_path: Path, rows: Path, run: Run, device: str, model: ModelSpec) -> None:
    found = {}
    for where in ("cpu", device):
        folder = tmp_path / f"on-{where}"
        pretrained = run(stage_spec(folder / "pretrain", rows, "pretrain", model=model), where)
        base = str(pretrained.checkpoints)
        tuned = run(stage_spec(folder / "ptune", rows, "p-tuning", model=model, base=base), where)
        spec = stage_spec(folder / "answer", rows, "evaluate", model=model, base=base, prompts=str(tuned.checkpoints))
        answers = predictions(run(spec, where))
        found[where] = (losses(pretrained), losses(tuned), answers)
    (cpu_pretrained, cpu_tuned, cpu_answers), (pretrained_losses, tuned_losses, answers) = found["cpu"], found[device]
    assert pretrained_losses == pytest.approx(cpu_pretrained, rel=1e-4)
    assert tuned_losses == pytest.approx(cpu_tuned, rel=1e-3)
    # a tie of two tokens may fall either way
    assert sum(a == b for a, b in zip(answers, cpu_answers, strict=True)) >= 0.9 * len(answers)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_every_precision_trains(tmp_path: Path, rows: Path, run: Run, device: str, precision: str) -> None:
    if precision == "fp16" and REHEARSES:
        pytest.skip("twenty steps of fp16's loss scale are too few to compare on")
    exact = losses(run(stage_spec(tmp_path / "fp32", rows, "pretrain", lr=2e-3), device))
    spec = stage_spec(tmp_path / precision, rows, "pretrain", lr=2e-3)
    if precision == "fp16":  # the scale falls from 2**32 in its first steps, which train nothing
        spec = replace(spec, trainer=replace(spec.trainer, max_steps=60))
    found = losses(run(replace(spec, trainer=replace(spec.trainer, precision=precision)), device))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(exact[0], rel=1e-2)
    assert found[-1] < found[0]
    if precision != "fp16":
        assert found[-1] == pytest.approx(exact[-1], rel=3e-2)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, rows: Path, run: Run, device: str) -> None:
    def spec(name: str, steps: int) -> StageSpec:
        made = stage_spec(tmp_path / name, rows, "pretrain", steps=steps, save=10, model=MODERN)
        return replace(made, trainer=replace(made.trainer, deterministic=True))

    whole = run(spec("whole", 20), device)
    run(spec("halved", 10), device)
    resumed = spec("halved", 20)
    (Path(resumed.stage_dir) / "result.json").unlink()
    halved = run(resumed, device, attempt=2)
    assert losses(halved) == losses(whole)
    assert checkpoint_bytes(halved, 20) == checkpoint_bytes(whole, 20)


def test_an_asynchronous_save_has_the_bits_of_a_synchronous_one(
    tmp_path: Path, rows: Path, run: Run, device: str
) -> None:
    made = []
    for name in ("synchronous", "asynchronous"):
        spec = stage_spec(tmp_path / name, rows, "pretrain", steps=8, save=2, model=MODERN)
        spec = replace(spec, trainer=replace(spec.trainer, deterministic=True))
        spec = replace(spec, checkpoint=replace(spec.checkpoint, asynchronous=name == "asynchronous"))
        made.append(run(spec, device))
    for step in (4, 6, 8):
        assert checkpoint_bytes(made[1], step) == checkpoint_bytes(made[0], step)


def test_too_little_memory_is_named(tmp_path: Path, rows: Path, run: Run, device: str) -> None:
    if REHEARSES:
        pytest.skip("the CPU's memory is not tried out")
    # One table above all memory. Segments that expand would take all there is before they give up, and with it that of
    # the tests beside this one.
    big = replace(SMALL, hidden_size=16384, padded_vocab_size=1 << 24)
    spec = stage_spec(tmp_path / "big", rows, "pretrain", model=big)
    paths = run(spec, device, code=int(ExitCode.MEMORY), PYTORCH_CUDA_ALLOC_CONF="expandable_segments:False")
    record = json.loads(paths.attempt(1).rank(0).read_text())
    assert record["kind"] == "memory"


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    tokens: int
    micro: int
    precision: Any
    like: str = "gpt"
    recompute: RecomputeSpec | None = None

    @property
    def model(self) -> ModelSpec:
        made = replace(
            SMALL if self.like == "gpt" else MODERN,
            num_layers=self.layers,
            hidden_size=self.hidden,
            ffn_hidden_size=4 * self.hidden,
            num_attention_heads=8,
            num_query_groups=8 if self.like == "gpt" else 4,
            kv_channels=self.hidden // 8,
            max_position_embeddings=self.tokens,
            vocab_size=32768,
            padded_vocab_size=32768,
        )
        return replace(made, num_moe_experts=4) if self.like == "mixtral" else made

    def __str__(self) -> str:
        recomputed = f", {self.recompute.granularity} recomputation" if self.recompute else ""
        layers = f"{self.layers} layers of {self.hidden} like {self.like}{recomputed}"
        return f"{layers}, {self.micro} × {self.tokens} tokens, {self.precision}"


FULL, SELECTIVE = RecomputeSpec("full", "uniform", 1), RecomputeSpec("selective")
SHAPES = [
    Shape(layers, hidden, tokens, micro, precision)
    for layers, hidden in ((4, 512), (8, 1024))
    for tokens, micro in ((512, 2), (1024, 4))
    for precision in ("fp32", "bf16", "fp16")
]
SHAPES += [Shape(8, 1024, 1024, 4, precision, "llama") for precision in ("fp32", "bf16")]
SHAPES += [Shape(8, 1024, 1024, 4, "bf16", "llama", recompute) for recompute in (FULL, SELECTIVE)]
SHAPES += [Shape(4, 1024, 1024, 4, precision, "mixtral") for precision in ("fp32", "bf16")]
SHAPES += [Shape(4, 1024, 1024, 4, "bf16", "mixtral", FULL)]
# the trace counts experts whose tokens are even, the random router of a test is not
NEAR = {"gpt": 0.03, "llama": 0.03, "mixtral": 0.1}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_is_what_the_trace_says(tmp_path: Path, device: str, shape: Shape) -> None:
    if REHEARSES and (shape.hidden > 512 or shape.precision == "fp16"):
        pytest.skip("small shapes are enough to try the test")
    spec = replace(
        stage_spec(Path("/unused"), Path("/unused"), "pretrain", model=shape.model),
        device=device,  # type: ignore[arg-type]
        tokenizer=TokenizerSpec("base"),
        parallel=ParallelSpec(1, 1, 1, 1, 1, 1),
        batch=BatchSpec(shape.micro, shape.micro, 1),
        trainer=TrainerSpec(shape.precision, max_steps=2, recompute=shape.recompute),
        text=TextData([], seq_length=shape.tokens),
    )
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(spec)))
    found = {}
    for what, where in (("held", device), ("traced", "cpu")):
        words = [str(tmp_path / "spec.json"), str(tmp_path / what)]
        process = forked(words, tmp_path / "log", where, function=f"tests.gpu.memory_of_steps:{what}")
        assert ended(process) == 0, (tmp_path / "log").read_text()[-3000:]
        found[what] = int((tmp_path / what).read_text())
    held, traced = found["held"], found["traced"]
    print(f"{shape}: {held / 2**20:.0f} MiB, traced {traced / 2**20:.0f}")
    assert traced == pytest.approx(held, rel=NEAR[shape.like])


def test_what_was_used_is_recorded(tmp_path: Path, rows: Path, run: Run, device: str) -> None:
    found = result(run(stage_spec(tmp_path / "p", rows, "pretrain", steps=2), device))
    assert found["versions"]["torch"]
    assert device == "cpu" or found["versions"]["cuda"]
