"""LoRA on a model whose frozen layers are in 4 bits: as transformers quantises it, as Trainer trains it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclm.core.fine_tune_spec import HuggingFaceSpec, LoraSpec
from hpclm.core.ranks.seeds import named_seed
from tests.engine_hf.conftest import Workshop
from tests.engine_hf.test_parity_with_trainer import STEPS, ours, trained_by_trainer
from tests.engine_hf.test_sharding import same
from tests.support.engine_harness import checkpoint_bytes, losses, predictions, result, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("bitsandbytes", reason="huggingface.quantization needs bitsandbytes")

NF4 = HuggingFaceSpec(quantization="nf4")
EVERYWHERE = {"lora": LoraSpec(8, 16.0, targets=["all-linear"])}


def by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, dtype=torch.float32, device_map="cpu"
    )
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_its_numbers_are_those_of_transformers(shop: Workshop, kind: str) -> None:
    from hpclm.engines.hf.ranks.hf_loading import empty_model, weights_of

    folder = shop.model(kind)
    mine = empty_model(folder, replace(NF4, attention="sdpa"))
    weights_of(mine, folder, torch.device("cpu")).fill([("", mine)], torch.float32)
    mine.tie_weights()
    tokens = torch.randint(0, 50, (2, 11))
    with torch.no_grad():
        # in training, for otherwise the CPU's kernel computes in bf16
        found, wanted = mine.train()(tokens).logits, by_transformers(folder).train()(tokens).logits
    assert torch.equal(found, wanted)


def test_losses_and_adapters_are_trainers(shop: Workshop, tmp_path: Path) -> None:
    from hpclm.engines.hf.ranks import adapters

    spec = shop.spec(method="lora", of_method=EVERYWHERE, steps=STEPS, lr=3e-3, weight_decay=0.1, validate=100)
    spec = replace(spec, huggingface=NF4)
    paths = run(spec)
    model = by_transformers(Path(spec.base))
    adapters.attach(model, spec.method, spec.base, None, named_seed(spec.trainer.seed, "adapter") % (1 << 31))
    model.train()
    # Trainer wants adapters on what is quantised, and asks for PEFT's class
    model._hf_peft_config_loaded = True
    wanted, weights = trained_by_trainer(tmp_path, spec, model, 3)
    assert losses(paths) == pytest.approx(wanted, abs=6e-5 if max(wanted) < 10 else 6e-4)
    mine = ours(paths, set(weights))
    assert set(mine) == set(weights)
    for name, value in weights.items():
        assert torch.allclose(mine[name], value, atol=1e-4), name
    unquantised = losses(shop.run(method="lora", of_method=EVERYWHERE, steps=STEPS, lr=3e-3, weight_decay=0.1))
    assert losses(paths) != pytest.approx(unquantised, abs=1e-4)


@pytest.mark.parametrize("sharding", [{}, {"checkpointing": True, "group_size": 2}, {"offload": "all"}], ids=str)
def test_fsdp_divides_what_is_in_4_bits(shop: Workshop, sharding: dict[str, Any]) -> None:
    found, divided = [], {"strategy": "fsdp", "sharding": sharding}
    ways: list[tuple[int, dict[str, Any]]] = [(1, {}), (4 if "group_size" in sharding else 2, divided)]
    for ranks, how in ways:
        spec = shop.spec(method="lora", of_method=EVERYWHERE, lr=1e-2, ranks=ranks, **how)
        found.append(run(replace(spec, huggingface=NF4)))
    same(found[1], found[0], tolerance=5e-6)


def test_a_resumed_run_ends_with_the_same_bits(shop: Workshop) -> None:
    def spec(steps: int) -> Any:
        made = shop.spec(method="lora", steps=steps, ranks=2, validate=3)
        return replace(made, huggingface=NF4, optim=replace(made.optim, schedule="constant"))

    whole = run(spec(8))
    first = spec(4)
    run(first)
    (Path(first.stage_dir) / "result.json").unlink()
    halved = run(replace(first, trainer=replace(first.trainer, max_steps=8)), attempt=2)
    assert losses(halved) == losses(whole)
    assert checkpoint_bytes(halved, 8) == checkpoint_bytes(whole, 8)


def test_answers_are_given_in_4_bits_and_in_full(shop: Workshop) -> None:
    trained = run(replace(shop.spec(method="lora", steps=60, lr=1e-2), huggingface=NF4))
    found = {}
    for name, how in (("4 bits", NF4), ("full", HuggingFaceSpec())):
        spec = replace(shop.spec(), task="evaluate", base=str(trained.checkpoints), huggingface=how)
        found[name] = run(spec)
    quantised, full = (predictions(found[name]) for name in ("4 bits", "full"))
    assert sum(a == b for a, b in zip(quantised, full, strict=True)) >= 0.5 * len(full)
    assert result(found["4 bits"])["loss"] != result(found["full"])["loss"]
