"""Adapters in PEFT's format: PEFT loads them and computes what was trained; merging keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.fine_tune_spec import LoraSpec
from hpclm.engines.hf.ranks import adapters
from hpclm.engines.hf.ranks.exporting import export, write_files
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import result
from tests.support.hf_models import loaded_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def tokens_of(folder: Path) -> Tensor:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found: Tensor = tokenizer("Swap the words. path name self", return_tensors="pt")["input_ids"]
    return found


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model.eval()(input_ids=tokens).logits
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "p-tuning", "prompt-tuning"])
def test_peft_loads_what_a_stage_saves(shop: Workshop, kind: str, method: str) -> None:
    from peft import PeftModel

    paths = shop.run(kind, method=method, lr=1e-2)
    folder = paths.checkpoint(10)
    card = json.loads(CheckpointFolder(folder).fine_tuned.read_text())
    assert card["base"] == str(shop.model(kind))
    base: Any = loaded_model(shop.model(kind))
    plain = logits(base, tokens_of(folder))
    tuned: Any = PeftModel.from_pretrained(base, str(folder))
    moved = logits(tuned, tokens_of(folder))[:, -plain.size(1) :]
    assert (moved - plain).abs().max() > 1e-3
    stored = WholeTensors(folder)
    if method == "lora":
        # y = Wx + α/r · B A x
        names = [name for name in stored.stored if ".lora_A." in name and not name.startswith("optimizer.")]
        for name in names:
            a, b = stored.tensor(name), stored.tensor(name.replace("lora_A", "lora_B"))
            theirs = dict(tuned.named_parameters())[f"base_model.model.{name}"]
            assert torch.equal(a, theirs)
            assert b.any()
    assert result(paths)["trained_parameters"] < 20_000


@pytest.mark.parametrize("dora", [False, True])
def test_a_joined_adapter_computes_what_the_adapter_did(shop: Workshop, tmp_path: Path, dora: bool) -> None:
    from peft import PeftModel, get_peft_model_state_dict

    tables = {"lora": LoraSpec(4, 8.0, targets=["q_proj", "down_proj", "embed_tokens"], dora=dora)}
    paths = shop.run(method="lora", lr=1e-2, of_method=tables)
    made = export(paths.checkpoints, tmp_path / "joined", "fp32")
    assert made.difference is not None
    assert made.difference < 1e-5
    base: Any = loaded_model(shop.model("llama"))
    adapter: Any = PeftModel.from_pretrained(base, str(Path(made.source)))
    theirs = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    assert set(load_file(Path(made.source) / adapters.WEIGHTS)) == set(theirs)
    wanted = logits(adapter, tokens_of(tmp_path / "joined"))
    joined = loaded_model(tmp_path / "joined")
    assert (logits(joined, tokens_of(tmp_path / "joined")) - wanted).abs().max() < 1e-5
    assert made.base_digest in (tmp_path / "joined" / "README.md").read_text()


def test_an_adapter_is_not_joined_with_another_model(shop: Workshop, tmp_path: Path) -> None:
    paths = shop.run(method="lora", lr=1e-2)
    copied = tmp_path / "adapter"
    copied.mkdir()
    for path in paths.checkpoint(10).iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    for path in (copied / adapters.CONFIG,):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "base_model_name_or_path": str(shop.model("gpt2"))}))
    with pytest.raises(CheckpointError, match=r"its weights are not those that .* was trained on"):
        export(copied, tmp_path / "joined", "fp32")
    assert not list(tmp_path.glob("joined*"))


def test_a_full_checkpoint_becomes_a_folder_that_transformers_loads(shop: Workshop, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    paths = shop.run(ranks=2, strategy="fsdp")
    export(paths.checkpoints, tmp_path / "whole", "fp32")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    stored = WholeTensors(paths.checkpoint(10))
    for name, value in model.named_parameters():
        assert torch.equal(value, stored.tensor(name)), name
    assert model.config.dtype == torch.float32


def test_large_models_are_written_in_several_files(tmp_path: Path) -> None:
    tensors = [(f"layers.{number}.weight", torch.full((4, 4), float(number))) for number in range(5)]
    write_files(tmp_path, tensors, torch.bfloat16, limit=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 32
    assert set(index["weight_map"].values()) == {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    for name, value in tensors:
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], value.bfloat16())


@pytest.mark.parametrize(
    ("harm", "words"),
    [("zero", "that begins as zero"), ("missing", "is missing"), ("empty", "has shape"), ("nan", "no numbers")],
)
def test_an_empty_adapter_is_noticed(tmp_path: Path, harm: str, words: str) -> None:
    wanted = {
        "base_model.model.x.lora_A.weight": torch.ones(2, 4),
        "base_model.model.x.lora_B.weight": torch.ones(4, 2),
        "base_model.model.x.lora_magnitude_vector": torch.ones(4),
        "base_model.model.head.weight": torch.ones(4, 4),
    }
    shapes = {name: tuple(one.shape) for name, one in wanted.items()}
    b = "base_model.model.x.lora_B.weight"
    saved = dict(wanted)
    if harm == "missing":
        del saved[b]
    else:
        saved[b] = {"zero": torch.zeros(4, 2), "empty": torch.zeros(0), "nan": torch.full((4, 2), float("nan"))}[harm]
    save_file(saved, tmp_path / adapters.WEIGHTS)
    assert words in str(adapters.emptiness(tmp_path, shapes, trained=True))
    save_file(wanted, tmp_path / adapters.WEIGHTS)
    assert adapters.emptiness(tmp_path, shapes, trained=True) is None
