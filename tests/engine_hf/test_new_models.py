"""`model init`: a model of a configuration, to pre-train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpclm.cli import app as cli
from hpclm.core.fine_tune_spec import InstructionData
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import losses, run
from tests.support.hf_models import loaded_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets it for its process, which is the tests' own here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_it_is_drawn_by_its_seed_and_learns_text(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shop.model("llama")
    config = tmp_path / "config.json"
    config.write_bytes((source / "config.json").read_bytes())
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        words = [str(config), str(tmp_path / name), "--tokenizer", str(source), "--seed", seed]
        assert cli.run(["model", "init", *words]) == 0
    assert "parameters, fp32, drawn with seed 8" in capsys.readouterr().out
    a, b, c = (loaded_model(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["model.embed_tokens.weight"], c["model.embed_tokens.weight"])
    rows = tmp_path / "text.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "", "completion": f"for name in path: {number}"}) + "\n"
                            for number in range(64)))  # fmt: skip
    data = InstructionData(train=[str(rows)], template="plain", learn="everything", packing=True, max_seq_length=128)
    found = losses(run(replace(shop.spec(lr=1e-2, steps=12), base=str(tmp_path / "a"), data=data)))
    assert found[-1] < found[0] - 1


def test_mistakes_are_said(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shop.model("llama")
    config = json.loads((source / "config.json").read_text())

    def error(config: object, *words: str) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        out = tmp_path / "out"
        assert cli.run(["model", "init", str(tmp_path / "config.json"), str(out), *words]) != 0
        assert not out.exists()
        return capsys.readouterr().err

    there = ("--tokenizer", str(source))
    assert "tokenizer cannot be loaded" in error(config)
    assert "does not exist" in error(config, "--tokenizer", str(tmp_path / "none"))
    assert "vocab_size is 20" in error({**config, "vocab_size": 20}, *there)
    assert "no model can be made of it" in error({**config, "model_type": "t5"}, *there)
    (tmp_path / "there").mkdir()
    assert cli.run(["model", "init", str(source), str(tmp_path / "there")]) != 0
    assert "already exists" in capsys.readouterr().err
