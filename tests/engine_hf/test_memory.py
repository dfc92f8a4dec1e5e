"""The estimate of memory against what transformers' layers hold, and against arithmetic that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclm.core.fine_tune_spec import LoraSpec, MethodSpec, ShardingSpec
from hpclm.engines.hf.memory import host_memory, layer_activations, memory, trained_parameters
from hpclm.engines.hf.ranks import adapters, document_attention
from hpclm.engines.hf.ranks.document_batches import document_batch
from hpclm.engines.hf.ranks.loss_model import LossModel
from hpclm.engines.hf.ranks.precision import arithmetic, dtype_of
from hpclm.formats.huggingface.model_facts import ModelFacts, model_facts
from hpclm.training.ranks.rank_tracing import kernels_of_gpus
from hpclm.worker.ranks.storage_counter import StorageCounter
from tests.engine_hf.conftest import Workshop
from tests.support.hf_models import save_model

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = 256
METHODS = {
    "full": MethodSpec(),
    "lora": MethodSpec("lora", LoraSpec(2)),
    "lora-everywhere": MethodSpec("lora", LoraSpec(2, targets=["all-linear"])),
    "lora-dropout": MethodSpec("lora", LoraSpec(2, targets=["all-linear"], dropout=0.1)),
}


def held(folder: Path, precision: str, method: MethodSpec, layers: int) -> float:
    """Bytes a token that a model of so many layers keeps after its forward pass."""
    from transformers import AutoConfig, AutoModelForCausalLM

    document_attention.register()
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "gpt2":
        config.n_layer = layers
    else:
        config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="documents", dtype=dtype_of(precision))  # type: ignore[no-untyped-call]
    if method.method == "lora":
        adapters.attach(model, method, "", None, 1)
    row = (np.ones(TOKENS, dtype=np.int32), np.ones(TOKENS, dtype=np.bool_))
    whole = LossModel(model, model)
    whole.train()
    with kernels_of_gpus(), arithmetic(precision, torch.device("cpu")), StorageCounter() as counter:
        counter.mark(model.parameters(), "weights")
        counter.kind = "activations"
        loss = whole(document_batch([row]))
        kept: int = counter.live["activations"]
    assert loss.requires_grad
    return kept / TOKENS


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layers_activations_are_what_transformers_holds(
    tmp_path: Path, kind: str, method: MethodSpec, precision: str
) -> None:
    wide: dict[str, Any] = (
        {"n_embd": 128} if kind == "gpt2" else {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32}
    )
    folder = save_model(tmp_path / kind, kind, **wide)
    counted = (held(folder, precision, method, 6) - held(folder, precision, method, 2)) / 4
    estimate = layer_activations(model_facts(folder), dtype_of(precision).itemsize, method)
    # a GPU's autocast has GPT-2's norms in fp32, a CPU's has not
    assert estimate == pytest.approx(counted, rel=0.25 if kind == "gpt2" and precision == "bf16" else 0.12)


def facts_of(shop: Workshop) -> ModelFacts:
    return replace(model_facts(shop.model("llama")), parameters=8_000_000_000, embeddings=500_000_000, num_layers=32)


def test_strategies_divide_what_their_papers_say(shop: Workshop) -> None:
    """Rajbhandari et al. 2020, figure 1, with fp32 masters: 2 + 2 + 12 bytes a weight in bf16."""
    facts, spec = facts_of(shop), shop.spec(ranks=4)
    trained = facts.parameters

    def of(strategy: str, offload: str = "none") -> Any:
        sharding = ShardingSpec(strategy, offload=offload)  # type: ignore[arg-type]
        return memory(replace(spec, sharding=sharding, trainer=replace(spec.trainer, precision="bf16")), facts)

    ddp, zero1, zero2, zero3, fsdp = (of(one) for one in ("ddp", "zero1", "zero2", "zero3", "fsdp"))
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (6 * trained, 4 * trained, 8 * trained)
    assert (zero1.weights, zero1.gradients, zero1.optimizer) == (2 * trained, 2 * trained, 3 * trained)
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (2 * trained, trained / 2, 3 * trained)
    assert (zero3.gradients, zero3.optimizer) == (trained / 2, 3 * trained)
    assert trained / 2 < zero3.weights < trained
    assert (fsdp.gradients, fsdp.optimizer) == (trained, 2 * trained)
    assert trained < fsdp.weights < 1.4 * trained
    assert of("zero2", "optimizer").optimizer == 0
    offloaded = replace(spec, sharding=ShardingSpec("zero3", offload="all"))
    host = host_memory(replace(offloaded, trainer=replace(spec.trainer, precision="bf16")), facts)
    assert (host.weights, host.optimizer) == (trained // 2, 3 * trained)
    on_disk = replace(offloaded, sharding=ShardingSpec("zero3", offload="all", nvme="/scratch"))
    assert host_memory(on_disk, facts).disk > 0


def test_an_adapters_weights_are_counted(shop: Workshop) -> None:
    facts, spec = model_facts(shop.model("llama")), shop.spec(method="lora")
    told = memory(spec, facts)
    assert told.parameters == facts.parameters + told.trainable_parameters
    # q_proj and v_proj of two layers, rank 8
    exact = 2 * 8 * ((64 + 64) + (64 + 32))
    assert told.trainable_parameters == exact


def test_lora_everywhere_leaves_experts_out(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(tmp_path)
    method = METHODS["lora-everywhere"]
    adapters.attach(model, method, "", None, 1)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert trained_parameters(model_facts(tmp_path), method) == trained
