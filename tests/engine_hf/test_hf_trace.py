"""`plan --trace` of engine hf: what it says is what a run holds, the plan's estimate is near it, and every shipped
recipe runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.fine_tune_spec import FineTuneStageSpec, HuggingFaceSpec, LoraSpec
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.rank_trace import RankTrace
from hpclm.core.records import to_dict
from hpclm.core.spec import BatchSpec, GenerationSpec
from hpclm.engines.hf.deepspeed_config import completed
from hpclm.engines.hf.memory import memory
from hpclm.formats.huggingface.model_facts import model_facts
from hpclm.planning import make_plan, tracing
from hpclm.recipe import load
from tests.engine_hf.conftest import Workshop
from tests.support.hf_measured import held
from tests.support.hf_models import save_model
from tests.support.hf_sizes import MEMORY, shipped_recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TRACER = "hpclm.engines.hf.ranks.hf_trace"
NF4 = HuggingFaceSpec(quantization="nf4")
EVERYWHERE = {"lora": LoraSpec(16, targets=["all-linear"], dropout=0.1)}
SAVED = {"lora": LoraSpec(8, targets=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])}
DORA = {"lora": LoraSpec(8, targets=["all-linear"], dora=True)}
WIDE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 64,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "vocab_size": 4000,
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("wide") / "llama", "llama", **WIDE)


def stage(shop: Workshop, folder: Path, ranks: int, **how: Any) -> FineTuneStageSpec:
    """Two micro-batches of two rows of 256 tokens on each of so many ranks."""
    spec: FineTuneStageSpec = shop.spec(data={"max_seq_length": 256}, **how)
    batch = BatchSpec(4 * ranks, 2, 2)
    sharding = spec.sharding
    if sharding.strategy.startswith("zero"):
        precision = spec.trainer.precision
        filled = completed({}, replace(sharding, deepspeed={}), batch, ranks, precision, clip=1.0, hidden_size=256)
        sharding = replace(sharding, deepspeed=filled)
    parallel = ParallelSpec(1, 1, ranks, ranks, 1, ranks)
    return replace(spec, base=str(folder), batch=batch, parallel=parallel, sharding=sharding)


@pytest.mark.parametrize(
    "how",
    [
        {"precision": "bf16"},
        {"method": "lora", "of_method": EVERYWHERE, "precision": "bf16"},
        {"method": "p-tuning"},
        {"strategy": "fsdp", "precision": "bf16", "sharding": {"checkpointing": True}},
        {"strategy": "zero2", "precision": "bf16", "optimizer": "adafactor"},
        {"strategy": "zero3", "precision": "bf16"},
        {"strategy": "zero3", "precision": "bf16", "method": "lora"},
        {"task": "evaluate"},
        {"method": "lora", "of_method": EVERYWHERE, "precision": "bf16", "huggingface": NF4},
        {"method": "lora", "of_method": EVERYWHERE, "precision": "bf16", "huggingface": NF4, "strategy": "fsdp"},
        {"method": "lora", "of_method": SAVED, "precision": "bf16", "strategy": "fsdp"},
        {"method": "lora", "of_method": {"lora": replace(SAVED["lora"], dora=True)}, "strategy": "zero3"},
    ],
    ids=lambda how: "-".join(str(one) for one in how.values() if isinstance(one, str)),
)
def test_a_run_with_memory_holds_what_the_trace_says(
    shop: Workshop, wide: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    """The same counter, on real tensors of a real rank."""
    spec = stage(shop, wide, 1, **how)
    traced, real = held("traced", spec, tmp_path), held("measured", spec, tmp_path)
    assert traced.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    for kind in {*traced.bytes_by_kind, *real.bytes_by_kind}:
        assert traced.bytes_by_kind.get(kind, 0) == pytest.approx(real.bytes_by_kind.get(kind, 0), rel=0.03, abs=65536)


ESTIMATED: list[dict[str, Any]] = [
    {"ranks": 4, "strategy": "ddp"},
    {"ranks": 4, "strategy": "fsdp"},
    {"ranks": 4, "strategy": "fsdp", "precision": "fp32", "device": "cpu"},
    {"ranks": 4, "strategy": "fsdp", "sharding": {"group_size": 2}},
    {"ranks": 4, "strategy": "fsdp", "sharding": {"checkpointing": True}},
    {"ranks": 4, "strategy": "fsdp", "sharding": {"offload": "all"}},
    {"ranks": 4, "strategy": "fsdp", "method": "lora", "of_method": EVERYWHERE},
    {"ranks": 1, "method": "lora"},
    {"ranks": 1, "method": "lora", "of_method": EVERYWHERE, "huggingface": NF4},
    {"ranks": 1, "task": "evaluate", "generation": GenerationSpec(max_new_tokens=8, batch_size=2), "huggingface": NF4},
    {"ranks": 4, "method": "lora", "of_method": EVERYWHERE, "huggingface": NF4, "strategy": "fsdp"},
    {"ranks": 4, "method": "lora", "of_method": SAVED, "strategy": "fsdp"},
    {"ranks": 1, "method": "lora", "of_method": DORA},
    {"ranks": 1, "method": "prompt-tuning"},
    {"ranks": 4, "strategy": "zero1"},
    {"ranks": 4, "strategy": "zero2", "sharding": {"offload": "optimizer"}},
    {"ranks": 4, "strategy": "zero3"},
    {"ranks": 4, "strategy": "zero3", "method": "lora"},
    {"ranks": 1, "task": "evaluate", "generation": GenerationSpec(max_new_tokens=128, batch_size=8)},
]


@pytest.mark.parametrize("how", ESTIMATED, ids=[str(number) for number in range(len(ESTIMATED))])
def test_the_plans_estimate_is_near_it(shop: Workshop, wide: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    spec = stage(shop, wide, **{"device": "gpu", "precision": "bf16", **how})
    found = held("traced", spec, tmp_path)
    peak = found.peak_bytes - found.bytes_by_kind.get("workspaces", 0)
    # of ZeRO-3 what DeepSpeed may hold at most, not what it happens to
    most = 1.35 if spec.sharding.strategy == "zero3" else 1.2
    assert 0.85 * peak < memory(spec, model_facts(wide)).total < most * peak, found.bytes_by_kind


def test_ranks_share_what_their_sharding_divides(shop: Workshop, wide: Path, tmp_path: Path) -> None:
    def of(ranks: int, **sharding: Any) -> RankTrace:
        return held("traced", stage(shop, wide, ranks, strategy="fsdp", sharding=sharding), tmp_path / str(ranks))

    alone, many = of(1), of(512)
    for kind in ("weights", "optimizer"):
        assert many.bytes_by_kind[kind] < alone.bytes_by_kind[kind] / 100
    offloaded = of(512, offload="all")
    assert not {"weights", "optimizer", "gradients"} & set(offloaded.bytes_by_kind)
    assert any("in the node's memory" in line for line in offloaded.assumed)


@pytest.mark.parametrize("name", MEMORY)
def test_every_shipped_recipe_runs_on_the_engine(tmp_path: Path, name: str) -> None:
    found = tracing.trace(make_plan(load(shipped_recipe(tmp_path, name))), None)
    assert [one.error for one in found] == [None] * len(found)
    for one in found:
        assert one.estimate_bytes is not None
        assert 0.85 * one.peak_bytes < one.estimate_bytes < 1.25 * one.peak_bytes, one.stage


def test_a_stage_that_goes_on_from_another_is_traced_by_the_models_folder(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    rows = {role: [str(path)] for role, path in shop.rows.items()}
    recipe.write_text(json.dumps({
        "version": 1, "name": "two", "model": {"checkpoint": str(shop.model("llama"))},
        "resources": {"nodes": 1, "devices_per_node": 2, "device": "cpu"},
        "instructions": {**rows, "template": "stanford", "max_seq_length": 64}, "optim": {"lr": 1e-3},
        "trainer": {"max_steps": 3, "precision": "fp32"}, "batch": {"global": 4, "micro": 2},
        "stages": [{"name": "full", "task": "fine-tune"},
                   {"name": "lora", "task": "fine-tune", "base": "full", "fine_tune": {"method": "lora"}},
                   {"name": "answers", "task": "evaluate", "engine": "hf", "base": "lora"}]}))  # fmt: skip
    assert cli.run(["plan", str(recipe), "--trace"]) == 0
    said = capsys.readouterr().out
    assert all(f"trace of stage {name}, rank 0: " in said for name in ("full", "lora", "answers"))


def test_no_weights_are_needed_and_no_model_is_said(shop: Workshop, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    spec = replace(shop.spec(), base=str(bare))
    text = json.dumps({"asked": [{"spec": to_dict(spec), "rank": 0}], "at_once": 1})
    done = subprocess.run([sys.executable, "-m", TRACER], input=text, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)[1]["error"].startswith(f"{bare}: has no config.json")
    (bare / "config.json").write_bytes((shop.model("llama") / "config.json").read_bytes())
    whole = replace(spec, base=str(shop.model("llama")))
    assert held("traced", spec, tmp_path / "a").peak_bytes == held("traced", whole, tmp_path / "b").peak_bytes
