"""A NeMo user's files, end to end: archive, YAML and rows; training and evaluation on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import processes
from tests.support.engine_harness import SMALL
from tests.support.nemo_files import write_archive

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = replace(SMALL, vocab_size=50257, padded_vocab_size=50304, max_position_embeddings=64)


def hpclm(folder: Path, *arguments: str) -> str:
    environment = processes.environment(HPCLM_RUNS_DIR=str(folder / "runs"), OMP_NUM_THREADS="1")
    return processes.hpclm(*arguments, cwd=folder, env=environment)


def weights() -> dict[str, torch.Tensor]:
    """A model's tensors under megatron-core's names, drawn."""
    draw = torch.Generator().manual_seed(1)
    h, layers = MODEL.hidden_size, range(MODEL.num_layers)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (MODEL.padded_vocab_size, h),
        "embedding.position_embeddings.weight": (MODEL.max_position_embeddings, h),
        "decoder.final_layernorm.weight": (h,),
        "decoder.final_layernorm.bias": (h,),
    }
    parts = {
        "input_layernorm": (h,),
        "self_attention.linear_qkv": (3 * h, h),
        "self_attention.linear_proj": (h, h),
        "pre_mlp_layernorm": (h,),
        "mlp.linear_fc1": (4 * h, h),
        "mlp.linear_fc2": (h, 4 * h),
    }
    for layer in layers:
        for name, shape in parts.items():
            shapes[f"decoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"decoder.layers.{layer}.{name}.bias"] = shape[:1]
    return {name: torch.randn(shape, generator=draw) * 0.05 for name, shape in shapes.items()}


def test_nemos_files_train_and_answer_here(tmp_path: Path, shared_data: Path) -> None:
    bpe = shared_data / "gpt2-bpe"
    files = {f"0a_{name}": (bpe / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    write_archive(tmp_path / "gpt.nemo", weights(), MODEL, tensor=2, files=files)
    rows = [
        {"taskname": "squad", "context": f"the {n} cats", "question": "how many?", "answer": f" {n}"} for n in range(12)
    ]
    (tmp_path / "data").mkdir()
    for part in ("train", "val"):
        (tmp_path / "data" / f"squad_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{key: value for key, value in row.items() if key != "answer"} for row in rows]
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    nemo = Path(__file__).parents[1] / "recipe" / "nemo_squad.yaml"
    (tmp_path / "squad.yaml").write_text(nemo.read_text())
    ours = [
        "trainer.accelerator=cpu",
        "trainer.precision=32",
        "trainer.devices=2",
        "model.tensor_model_parallel_size=2",
    ]
    ours += ["model.language_model_path=gpt.nemo", "model.p_tuning.encoder_hidden=16", "trainer.max_epochs=2"]
    settings = [word for one in ours for word in ("--set", one)]
    hpclm(tmp_path, "submit", "squad.yaml", *settings, "--wait")
    (run,) = json.loads(hpclm(tmp_path, "status", "--json"))["runs"]
    assert run["state"] == "completed"
    assert "Warning" not in hpclm(tmp_path, "logs", run["run"])

    trained = f"{run['path']}/stages/p-tuning/checkpoints"
    hpclm(tmp_path, "model", "convert", trained, "prompts.nemo", "--to", "nemo")
    inference = {
        "inference": {"greedy": True, "add_BOS": False, "tokens_to_generate": 3, "batch_size": 4},
        "trainer": {"devices": 2, "num_nodes": 1, "accelerator": "cpu", "precision": 32},
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 2,
        "gpt_model_file": "gpt.nemo",
        "virtual_prompt_model_file": "prompts.nemo",
        "pred_file_path": "out.txt",
        "data_paths": ["data/test.jsonl"],
    }
    (tmp_path / "inference.yaml").write_text(yaml.safe_dump(inference))
    hpclm(tmp_path, "submit", "inference.yaml", "--name", "asked", "--wait")
    hpclm(tmp_path, "collect", "asked", "--pred-file", "out.txt")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert len(lines) == 12
    assert all(line.startswith(f"Context: the {n} cats  Question: how many?") for n, line in enumerate(lines))
    (evaluated,) = (tmp_path / "runs").glob("asked-*")
    predictions = str(evaluated / "results" / "predictions.jsonl")
    scored = json.loads(hpclm(tmp_path, "evaluate", "score", predictions, "truth.jsonl", "--task", "squad", "--json"))
    assert scored["scores"]["squad"]["examples"] == 12
