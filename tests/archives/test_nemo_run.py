"""A NeMo user's steps, end to end: rows, archive, YAML; training and evaluation on this machine."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import processes
from tests.support.engine_harness import SMALL
from tests.support.nemo_files import bpe_files, write_archive
from tests.support.nemo_releases import INFERENCE, SQUAD, TRAINING, same_file_as, write

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = replace(SMALL, vocab_size=257, padded_vocab_size=384, max_position_embeddings=128)


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


def squad_file(*numbers: int) -> str:
    """SQuAD as published, of one question for each number."""
    paragraphs = [
        {
            "context": f"the {number} cats",
            "qas": [{"id": "0", "question": "how many?", "answers": [{"text": str(number), "answer_start": 4}]}],
        }
        for number in numbers
    ]
    return json.dumps({"version": "v2.0", "data": [{"title": "cats", "paragraphs": paragraphs}]})


def test_the_road_of_a_nemo_user(tmp_path: Path) -> None:
    """Prepare SQuAD, unpack the model, train with the YAML of r1.16 and overrides, write the .nemo, evaluate, look."""
    write_archive(tmp_path / "gpt.nemo", weights(), MODEL, tensor=2, files=bpe_files())
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "train-v2.0.json").write_text(squad_file(*range(12)))
    (tmp_path / "squad" / "dev-v2.0.json").write_text(squad_file(*range(20, 32)))
    hpclm(tmp_path, "data", "prepare", "squad", "squad", "data", "--ascii")

    with tarfile.open(tmp_path / "gpt.nemo") as archive:
        archive.extractall(tmp_path / "gpt", filter="data")

    write(tmp_path / "squad.yaml", TRAINING, same_file_as(TRAINING, "1.16"), [SQUAD])
    ours = ["trainer.accelerator=cpu", "trainer.precision=32", "trainer.devices=2", "trainer.max_epochs=2"]
    ours += ["model.tensor_model_parallel_size=2", "model.language_model_path=gpt", "model.p_tuning.encoder_hidden=16"]
    ours += ["model.existing_tasks=[]", "model.new_tasks=[squad]", "model.data.train_ds=[data/squad_train.jsonl]"]
    ours += ["model.data.validation_ds=[data/squad_val.jsonl]", "model.optim.sched.warmup_steps=1", "++model.seed=7"]
    hpclm(tmp_path, "submit", "squad.yaml", *ours, "--wait")
    (run,) = json.loads(hpclm(tmp_path, "status", "--json"))["runs"]
    assert run["state"] == "completed"
    assert "Warning" not in hpclm(tmp_path, "logs", run["run"])

    notes = json.loads(hpclm(tmp_path, "recipe", "import", "squad.yaml", *ours, "-o", "recipe.yaml", "--json"))["keys"]
    (hint,) = {note["note"] for note in notes if note["key"] == "model.nemo_path"}
    assert hint == "hpclm model convert RUN/stages/p-tuning/checkpoints prompts.nemo --to nemo"
    hpclm(tmp_path, *hint.replace("RUN", run["path"]).split()[1:])

    write(tmp_path / "inference.yaml", INFERENCE, same_file_as(INFERENCE, "1.16"))
    ours = ["trainer.accelerator=cpu", "trainer.precision=32", "trainer.devices=2", "pipeline_model_parallel_size=2"]
    ours += ["inference.greedy=True", "inference.add_BOS=False", "inference.tokens_to_generate=3"]
    ours += ["virtual_prompt_model_file=prompts.nemo", "pred_file_path=out.txt"]
    ours += ["data_paths=[data/squad_test.jsonl]"]
    hpclm(tmp_path, "submit", "inference.yaml", *ours, "--name", "asked", "--wait")
    hpclm(tmp_path, "collect", "asked", "--pred-file", "out.txt")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert [line[:40] for line in lines] == [f"Context: the {n} cats Question: how many?"[:40] for n in range(20, 32)]
    (evaluated,) = (tmp_path / "runs").glob("asked-*")
    predictions = str(evaluated / "results" / "predictions.jsonl")
    truth = "data/squad_test_ground_truth.jsonl"
    scored = json.loads(hpclm(tmp_path, "evaluate", "score", predictions, truth, "--task", "squad", "--json"))
    assert scored["scores"]["squad"]["examples"] == 12
