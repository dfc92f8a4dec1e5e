"""What is easily wrong without a word: tied embeddings, buffers, templates, adapters of other models, early stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpclm.core.errors import CheckpointError
from hpclm.core.exit_codes import ExitCode
from hpclm.core.fine_tune_spec import HuggingFaceSpec
from hpclm.core.layout import StagePaths
from hpclm.core.spec import EarlyStoppingSpec
from hpclm.engines.hf.ranks import adapters
from hpclm.engines.hf.ranks.exporting import export
from hpclm.engines.hf.ranks.tuned_models import load
from hpclm.formats.ranks.checkpoint_store import WholeTensors
from tests.engine_hf.conftest import Workshop
from tests.engine_hf.test_adapters import logits, tokens_of
from tests.engine_hf.test_sharding import same
from tests.support.engine_harness import Ranks, losses, result, run
from tests.support.hf_models import CHATML, loaded_model, save_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def loaded(base: Path) -> Any:
    return load(str(base), HuggingFaceSpec(attention="sdpa"), "fp32", torch.device("cpu")).model


def lora(shop: Workshop, base: Path, **how: Any) -> Any:
    from hpclm.core.fine_tune_spec import LoraSpec

    spec = shop.spec(method="lora", lr=1e-2, **how)
    modules = ["lm_head"]
    saved = replace(spec.method, lora=LoraSpec(targets=["q_proj"], modules_to_save=modules))
    return replace(spec, base=str(base), method=saved)


@pytest.mark.parametrize("tied", [True, False])
def test_modules_that_are_saved_are_in_the_joined_model(shop: Workshop, tmp_path: Path, tied: bool) -> None:
    """Tied embeddings are no longer one where one of them was trained by itself."""
    base = save_model(tmp_path / "base", tie_word_embeddings=tied)
    paths = run(lora(shop, base))
    wanted = logits(loaded(paths.checkpoints), tokens_of(base))
    export(paths.checkpoints, tmp_path / "joined", "fp32")
    joined = loaded_model(tmp_path / "joined")
    assert (logits(joined, tokens_of(base)) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_modules_that_are_saved_train_in_bf16(shop: Workshop, tmp_path: Path, strategy: str) -> None:
    found = losses(run(lora(shop, shop.model("llama"), precision="bf16", strategy=strategy)))
    assert found[-1] < found[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero3"])
def test_tied_embeddings_stay_one(shop: Workshop, tmp_path: Path, strategy: str) -> None:
    base = save_model(tmp_path / "tied", tie_word_embeddings=True)
    alone = run(replace(shop.spec(), base=str(base)))
    same(run(replace(shop.spec(ranks=2, strategy=strategy), base=str(base))), alone)


def test_a_routers_bias_is_kept(shop: Workshop, tmp_path: Path) -> None:
    """It is no parameter, and belongs to the model all the same."""
    shape: dict[str, Any] = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 0,
    }
    base = save_model(tmp_path / "moe", "glm4_moe", n_group=1, topk_group=1, n_shared_experts=1, **shape)
    file = base / "model.safetensors"
    tensors = load_file(file)
    names = [name for name in tensors if name.endswith("e_score_correction_bias")]
    assert names
    save_file({**tensors, **{name: torch.tensor([0.5, -0.25, 1.0, 0.0]) for name in names}}, file, {"format": "pt"})
    paths = run(replace(shop.spec(steps=2), base=str(base)))
    stored = WholeTensors(paths.checkpoint(2))
    for name in names:
        assert stored.tensor(name).tolist() == [0.5, -0.25, 1.0, 0.0]
    model = loaded(paths.checkpoints)
    assert dict(model.named_buffers())[names[0]].tolist() == [0.5, -0.25, 1.0, 0.0]


def test_rows_alone_keep_all_ranks_in_step(shop: Workshop) -> None:
    """Ten validation rows over two ranks: one has fewer, and every pass gathers weights from both."""
    same(shop.run("bloom", ranks=2, strategy="fsdp"), shop.run("bloom"), tolerance=5e-6)


def test_a_chat_template_of_the_recipe_goes_with_the_model(shop: Workshop, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    mine = tmp_path / "mine.jinja"
    mine.write_text(CHATML.replace("<|im_start|>", "<|im_start|>the "))
    spec = shop.spec(steps=2, data={"template": "chat", "chat_template": str(mine), "system": "Be brief."})
    folder = run(spec).checkpoint(2)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == mine.read_text()
    assert json.loads((folder / "fine_tuned.json").read_text())["system"] == "Be brief."


def copied(folder: Path, out: Path) -> Path:
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_an_adapter_of_another_model_is_refused(shop: Workshop, tmp_path: Path) -> None:
    folder = shop.run(method="lora", lr=1e-2).checkpoint(10)
    renamed = copied(folder, tmp_path / "renamed")
    tensors = load_file(renamed / adapters.WEIGHTS)
    others = {name.replace("self_attn", "attention"): one for name, one in tensors.items()}
    save_file(others, renamed / adapters.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: (has|lacks) .*no adapter for this"):
        loaded(renamed)
    changed = copied(folder, tmp_path / "changed")
    other = copied(shop.model("llama"), tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: one * 0.5 for name, one in weights.items()}, other / "model.safetensors", {"format": "pt"})
    config = json.loads((changed / adapters.CONFIG).read_text())
    (changed / adapters.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(CheckpointError, match="its weights are not those that"):
        loaded(changed)
    (changed / adapters.CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere"}))
    with pytest.raises(CheckpointError, match="its model was /nowhere, which is not there"):
        loaded(changed)


def test_an_adapter_alone_is_joined(shop: Workshop, tmp_path: Path) -> None:
    """As PEFT saves one: without a tokenizer."""
    folder = shop.run(method="lora", lr=1e-2).checkpoint(10)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        (alone / name).write_bytes((folder / name).read_bytes())
    made = export(alone, tmp_path / "joined", "fp32")
    assert (Path(made.folder) / "tokenizer.json").is_file()


def test_what_no_stage_of_this_engine_has_made_is_not_merged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is neither an adapter nor what a fine-tune stage has made"):
        export(tmp_path, tmp_path / "out", "fp32")


def test_a_run_that_stopped_early_is_over_when_it_is_resumed(shop: Workshop) -> None:
    spec = shop.spec(steps=40, validate=2, lr=0.5)
    stopping = replace(spec, trainer=replace(spec.trainer, early_stopping=EarlyStoppingSpec(2, 10.0)))
    before = result(run(stopping))
    assert before["stopped_early"]
    paths = StagePaths(Path(spec.stage_dir))
    paths.result.unlink()
    again = Ranks(stopping, attempt=2)
    assert again.wait() == [ExitCode.OK]
    after = result(paths)
    assert (after["steps"], after["last_checkpoint"]) == (before["steps"], before["last_checkpoint"])
    assert (paths.checkpoints / after["last_checkpoint"]).is_dir()
