"""Conversion of trained prompts and models: NeMo's archives, PEFT's adapters, and ours."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.building import build_prompts
from hpclm.cli import app as cli
from hpclm.core.errors import CheckpointError
from hpclm.core.files import write_json
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import to_dict
from hpclm.core.spec import PromptSpec, TaskTemplate
from hpclm.engines.megatron.ranks.convert import _tables, convert
from hpclm.engines.megatron.ranks.gpt_model import transformer_config
from hpclm.engines.megatron.ranks.groups import Groups
from hpclm.formats.inspection import look
from hpclm.formats.nemo.prompt_archives import trained_tasks
from hpclm.formats.ranks import checkpoint_store
from hpclm.formats.ranks.archived_weights import load_gpt
from hpclm.formats.ranks.shards import sharded_tensors
from tests.support.engine_harness import SMALL
from tests.support.gpt_models import DEEP, gpt_of, logits, state_of
from tests.support.nemo_files import config_text, saved, write_archive, write_members

pytestmark = pytest.mark.filterwarnings("ignore")

PARALLEL = ParallelSpec(1, 1, 1, 1, 1, 1)
LEADING = TaskTemplate("squad", "<|VIRTUAL_PROMPT_0|> {context} {answer}", 4, [4], truncate_field="context")
SPLIT = TaskTemplate("sentiment", "<|VIRTUAL_PROMPT_0|> {x} <|VIRTUAL_PROMPT_1|> {y}", 4, [3, 1], answer_field="y")
TABLES = {"squad": torch.arange(128.0).view(4, 32), "sentiment": torch.arange(128.0).view(4, 32).neg()}


def early(path: Path, **more: Any) -> Path:
    """As NeMo up to r1.16 writes it."""
    stored = {f"prompt_table.{task}.prompt_embeddings.weight": table for task, table in TABLES.items()}
    stored |= {f"prompt_table.{task}.indices": torch.arange(4) for task in TABLES}
    templates = [to_dict(one) for one in (LEADING, SPLIT)]
    config = f"virtual_prompt_style: inference\ntask_templates: {json.dumps(templates)}\n"
    weights = saved({"prompt_table": stored, **more})
    return write_members(path, {"model_config.yaml": config.encode(), "model_weights.ckpt": weights})


def late(path: Path) -> Path:
    """As NeMo from r1.17 on writes it."""
    stored = {f"prompt_table.{task}": torch.nn.Parameter(table) for task, table in TABLES.items()}
    encoder = {"embeddings": {"weight": torch.zeros(4, 32)}, "tpmlp": {"first.weight": torch.zeros(8, 32)}}
    weights = {"prompt_table": stored, **encoder}
    config = f"task_templates: {json.dumps([to_dict(LEADING), to_dict(SPLIT)])}\n".encode()
    folder = {"mp_rank_00/model_weights.ckpt": saved(weights), "mp_rank_01/model_weights.ckpt": saved(weights)}
    return write_members(path, {"model_config.yaml": config, **folder})


def tables(path: Path) -> dict[str, torch.Tensor]:
    return {template.taskname: table for template, table in _tables(path, look(path)["kind"])}


@pytest.mark.parametrize("write", [early, late])
def test_archives_of_both_eras_are_read(tmp_path: Path, alone: Groups, write: Any) -> None:
    path = write(tmp_path / "p.nemo")
    assert {task: one.count for task, one in trained_tasks(str(path)).items()} == {"squad": 4, "sentiment": 4}
    found = tables(path)
    assert all(torch.equal(found[task], table) for task, table in TABLES.items())
    assert look(path)["kind"] == "nemo-prompts"


@pytest.mark.parametrize("write", [early, late])
def test_there_and_back_changes_no_value(tmp_path: Path, alone: Groups, write: Any) -> None:
    convert(write(tmp_path / "p.nemo"), tmp_path / "ours", "hpclm", None)
    convert(tmp_path / "ours", tmp_path / "again.nemo", "nemo", None)
    assert look(tmp_path / "again.nemo")["facts"]["virtual_prompt_style"] == "inference"
    (first, _), (second, _) = _tables(tmp_path / "again.nemo", "nemo-prompts")
    assert (first, second) == (LEADING, SPLIT)
    for form in ("ours", "again.nemo"):
        found = tables(tmp_path / form)
        assert all(torch.equal(found[task], table) for task, table in TABLES.items())


@pytest.mark.parametrize("encoder", ["tpmlp", "mlp", "lstm", "biglstm", "embedding", None])
def test_what_was_trained_here_converts_with_every_encoder(tmp_path: Path, alone: Groups, encoder: Any) -> None:
    config = transformer_config(SMALL, PARALLEL, "fp32", alone.device, variable_lengths=True)
    prompt = PromptSpec(encoder, 16, 2) if encoder else None
    card = PromptsCard("p-tuning" if encoder else "prompt-tuning", prompt, [LEADING, SPLIT])
    module = build_prompts(card, config, 5, alone.device)
    written = to_dict(card)
    checkpoint_store.save(
        tmp_path / "run", module.shards(), {}, lambda folder: write_json(folder / "prompts.json", written)
    )
    convert(tmp_path / "run", tmp_path / "p.nemo", "nemo", None)
    found = tables(tmp_path / "p.nemo")
    with torch.no_grad():
        expected = module()
    assert torch.equal(found["squad"], expected[0])
    assert torch.equal(found["sentiment"], expected[1])


def test_peft_loads_our_adapter_and_we_load_pefts(tmp_path: Path, alone: Groups) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import GPT2Config, GPT2LMHeadModel
    convert(early(tmp_path / "p.nemo"), tmp_path / "adapter", "peft", "squad")
    base = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4))
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    table = model.get_prompt(1)[0]
    assert torch.equal(table, TABLES["squad"])
    model.save_pretrained(str(tmp_path / "pefts"))
    convert(tmp_path / "pefts", tmp_path / "ours", "hpclm", None)
    assert torch.equal(tables(tmp_path / "ours")["pefts"], TABLES["squad"])


def test_what_cannot_be_an_adapter_is_said(tmp_path: Path, alone: Groups) -> None:
    path = early(tmp_path / "p.nemo")
    for task, words in (("sentiment", "are inside the template"), (None, "contains one task"), ("x", "no task 'x'")):
        with pytest.raises(CheckpointError, match=words):
            convert(path, tmp_path / "adapter", "peft", task)
    assert not (tmp_path / "adapter").exists()


GATED = replace(DEEP, normalization="rmsnorm", activation="swiglu", add_bias_linear=False)


@pytest.mark.parametrize("model", [DEEP, GATED], ids=["gpt2", "gated"])
def test_a_model_there_and_back_gives_the_same_logits(tmp_path: Path, alone: Groups, model: Any) -> None:
    gpt = gpt_of(model, alone)
    convert(write_archive(tmp_path / "gpt.nemo", state_of(gpt), model, tensor=2), tmp_path / "ours", "hpclm", None)
    assert look(tmp_path / "ours")["facts"]["model"]["num_layers"] == 4
    convert(tmp_path / "ours", tmp_path / "again.nemo", "nemo", None)
    other = gpt_of(model, alone, seed=9)
    load_gpt(tmp_path / "again.nemo", sharded_tensors(other), model)
    assert torch.equal(logits(other), logits(gpt))
    with pytest.raises(CheckpointError, match="is already in that format"):
        convert(tmp_path / "again.nemo", tmp_path / "x", "nemo", None)


def test_inspect_shows_what_is_held(tmp_path: Path, alone: Groups, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_archive(tmp_path / "gpt.nemo", state_of(gpt_of(DEEP, alone)), DEEP, tensor=2)
    assert cli.run(["model", "inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "nemo-gpt" in out
    assert "num_layers: 4" in out
    assert "decoder.layers.3.mlp.linear_fc2.weight" in out
    assert cli.run(["model", "inspect", str(early(tmp_path / "p.nemo")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"] == [["squad", "float32", [4, 32]], ["sentiment", "float32", [4, 32]]]
    assert cli.run(["model", "inspect", str(tmp_path)]) != 0
    assert "not a .nemo archive, hpclm checkpoint, Hugging Face model, PEFT adapter or" in capsys.readouterr().err


def test_an_archive_without_tables_is_refused(tmp_path: Path) -> None:
    weights = saved({"prompt_table": {}, "prompt_encoder": {"embedding.weight": torch.zeros(2, 2)}})
    path = write_members(
        tmp_path / "p.nemo", {"model_config.yaml": config_text(DEEP).encode(), "model_weights.ckpt": weights}
    )
    with pytest.raises(CheckpointError, match="contains no task"):
        trained_tasks(str(path))
