"""A folder of transformers' is a base model for prompt learning: as good as the checkpoint that it converts to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from hpclm.data.tokenizers import Tokenizer
from hpclm.formats.huggingface.architectures import model_spec
from hpclm.planning import make_plan
from hpclm.recipe import load
from tests.support import engine_harness
from tests.support.engine_harness import Split, losses, predictions, run, stage_spec
from tests.support.processes import hpclm
from tests.support.samples import changed, write

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama and a small Mixtral with a tokenizer of the harness's text, beside `data`."""
    folder = tmp_path_factory.mktemp("hf")
    engine_harness.write_data(folder / "data")
    lines = [line for path in (folder / "data" / "text").iterdir() for line in path.read_text().splitlines()]
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "vocab_size": engine_harness.VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    experts = MixtralConfig(**config, num_local_experts=4, sliding_window=None)
    auto: Any = AutoModelForCausalLM
    for name, one in (("llama", LlamaConfig(**config)), ("mixtral", experts)):
        auto.from_config(one).save_pretrained(folder / name)
        Tokenizer.train(lines, engine_harness.VOCAB).save(folder / name)
        hpclm("model", "convert", str(folder / name), str(folder / f"{name}-converted"), "--to", "hpclm")
    return folder


@pytest.mark.parametrize(("kind", "shared"), [("llama", Split(2)), ("mixtral", Split(2, sequence=True))])
def test_prompts_are_learned_on_it_at_any_split(base: Path, kind: str, shared: Split) -> None:
    folder, converted = base / kind, base / f"{kind}-converted"
    model = model_spec(folder)

    def tuned(name: str, where: Path, split: Split) -> Any:
        settings: dict[str, Any] = {"base": str(where), "model": model, "steps": 6}
        return run(stage_spec(base / name, base / "data", "p-tuning", split, **settings))

    ours, theirs = tuned(f"{kind}-tuned", folder, shared), tuned(f"{kind}-again", converted, Split())
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)

    def answers(name: str, where: Path, split: Split) -> list[str]:
        settings: dict[str, Any] = {"base": str(where), "model": model, "prompts": str(ours.checkpoints)}
        return predictions(run(stage_spec(base / name, base / "data", "evaluate", split, **settings)))

    alone = answers(f"{kind}-answers-alone", converted, Split())
    assert answers(f"{kind}-answers", folder, Split(1, 2)) == alone
    assert answers(f"{kind}-answers-of-two", folder, Split(2)) == alone


def test_the_plan_reads_its_architecture(base: Path, tmp_path: Path) -> None:
    recipe = changed(("model", {"checkpoint": str(base / "llama")}), ("tokenizer", None))
    recipe["stages"] = [dict(recipe["stages"][1], base=None)]
    del recipe["text"]
    plan = make_plan(load(write(tmp_path, recipe)))
    assert [str(one) for one in plan.errors if one.rule != "unused section"] == []
    spec: Any = plan.stages[0].spec
    assert replace(spec.model, padded_vocab_size=0) == replace(model_spec(base / "llama"), padded_vocab_size=0)
