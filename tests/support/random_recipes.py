"""Random pre-training recipes, right and wrong: the same ones each time, by their numbers."""

from __future__ import annotations

import random
from math import gcd
from typing import Any

Section = dict[str, Any]


class Dice(random.Random):
    """Draws by number, of what a recipe says."""

    def __init__(self, number: int) -> None:
        super().__init__(f"recipe {number}")

    def often(self, usual: Any, *others: Any, share: float = 0.75) -> Any:
        """The usual value in a share of all cases, else one of the others."""
        return usual if self.random() < share else self.choice(others)

    def some(self, section: Section, key: str, share: float, *values: Any) -> None:
        """Set a key in a share of all cases."""
        if self.random() < share:
            section[key] = self.choice(values)


def draw(number: int) -> Section:
    """A recipe of one stage for GPUs. Its engine, tokenizer and data are the caller's; `seq_length` is the data's."""
    dice = Dice(number)
    experts = dice.random() < 0.3
    model = _model(dice, experts)
    parallel = _parallel(dice, experts)
    ranks = parallel["tensor"] * parallel["pipeline"] * parallel.get("context", 1)
    resources = _resources(dice, ranks * parallel.get("expert", 1))
    replicas = max(1, resources["nodes"] * resources["devices_per_node"] // ranks)
    batch = _batch(dice, replicas)
    trainer, optim = _trainer(dice, batch, replicas * parallel["pipeline"])
    return {
        "version": 1,
        "name": "random",
        "task": "pretrain",
        "model": model,
        "resources": resources,
        "parallel": parallel,
        "batch": batch,
        "trainer": trainer,
        "optim": optim,
        "seq_length": dice.often(32, 33, 64, 24, 36, share=0.9),
    }


def _model(dice: Dice, experts: bool) -> Section:
    heads = dice.choice([4, 8, 8, 8, 16, 6, 12, 24])
    width = dice.often(16, 8, 12, 20)
    model: Section = {
        "num_layers": dice.choice([4, 6, 8, 8, 12, 12, 24]),
        "hidden_size": dice.often(heads * width, heads * width + 4, share=0.97),
        "num_attention_heads": heads,
        "max_position_embeddings": dice.often(64, 32, 48, 33, share=0.9),
        "vocab_size": 512,
    }
    dice.some(model, "num_query_groups", 0.3, 1, 2, 2, 4, 4, 3)
    dice.some(model, "kv_channels", 0.15, 8, 16, 3)
    dice.some(model, "ffn_hidden_size", 0.2, 128, 130, 96, 66)
    dice.some(model, "position_embedding", 0.5, "rope")
    dice.some(model, "normalization", 0.4, "rmsnorm", "layernorm", "layernorm1p")
    dice.some(model, "activation", 0.5, "swiglu", "gelu", "gelu_exact", "squared_relu")
    dice.some(model, "add_bias_linear", 0.9 if experts else 0.4, False)
    dice.some(model, "add_qkv_bias", 0.15, True)
    dice.some(model, "qk_norm", 0.15, True)
    dice.some(model, "tie_embeddings", 0.4, False)
    if experts:
        model["num_moe_experts"] = dice.choice([4, 4, 8, 8, 8, 6])
        dice.some(model, "moe_router_topk", 0.4, 1, 2, 4, 7)
    return model


def _parallel(dice: Dice, experts: bool) -> Section:
    found: Section = {
        "tensor": dice.choice([1, 1, 1, 2, 2, 2, 4, 4, 3]),
        "pipeline": dice.choice([1, 1, 2, 2, 2, 4, 3]),
    }
    piped = found["pipeline"] > 1
    if experts or dice.random() < 0.03:
        found["expert"] = dice.choice([1, 2, 2, 2, 4, 3])
        dice.some(found, "expert_tensor", 0.4, 1, 1, 2, 4)
    if found["tensor"] > 1 or dice.random() < 0.03:
        dice.some(found, "sequence", 0.85 if experts else 0.4, True)
    dice.some(found, "context", 0.25, 2, 2, 2, 4, 3)
    dice.some(found, "virtual_pipeline", 0.4 if piped else 0.04, 2, 2, 3, 1)
    dice.some(found, "first_stage_layers", 0.2 if piped else 0.03, 1, 2, 2, 3, 4)
    dice.some(found, "last_stage_layers", 0.2 if piped else 0.03, 1, 2, 2, 3, 4)
    dice.some(found, "account_for_embedding", 0.1, True)
    dice.some(found, "account_for_loss", 0.1, True)
    dice.some(found, "distributed_optimizer", 0.4, True)
    dice.some(found, "overlap", 0.35, True)
    return found


def _resources(dice: Dice, ranks: int) -> Section:
    """Mostly a multiple of what one copy of the model takes."""
    nodes = dice.often(1, 2, 3, share=0.6)
    devices = dice.often(ranks // gcd(ranks, nodes) * dice.choice([1, 1, 2]), 8, 6, 4, share=0.88)
    return {"nodes": nodes, "devices_per_node": devices, "device": "gpu", "time_limit_min": 5}


def _batch(dice: Dice, replicas: int) -> Section:
    micro = dice.choice([1, 1, 2, 4])
    size = dice.often(micro * replicas * dice.choice([1, 2, 4, 8, 12, 3]), 8, 12, 7, 64, share=0.9)
    return {"global": size, "micro": micro}


def _trainer(dice: Dice, batch: Section, groups: int) -> tuple[Section, Section]:
    """Sections `trainer` and `optim`, and the ramp-up of `batch` in steps that `groups` of ranks can share."""
    by_samples = dice.random() < 0.3
    length = 100 * batch["global"] if by_samples else 100
    trainer: Section = {"precision": dice.choice(["bf16", "bf16", "fp16", "fp32"])}
    trainer["train_samples" if by_samples else "max_steps"] = length
    if by_samples and dice.random() < 0.6:
        step = dice.often(batch["micro"] * groups, 4, 3)
        start, increment = step * dice.choice([1, 1, 2]), step * dice.choice([1, 2])
        batch["rampup"] = {"start": start, "increment": increment, "samples": length // 4}
    if dice.random() < 0.35:
        trainer["recompute"] = _recompute(dice)
    schedule = _schedule(dice, "samples" if by_samples else "steps", length)
    return trainer, {"lr": 1e-3, "min_lr": dice.often(0.0, 1e-4, 1e-3, 2e-3, share=0.9), "schedule": schedule}


def _recompute(dice: Dice) -> Section:
    found: Section = {"granularity": dice.choice(["full", "full", "selective"])}
    if (found["granularity"] == "full") is dice.often(True, False, share=0.93):
        found |= {"method": dice.choice(["uniform", "block"]), "num_layers": dice.choice([1, 1, 2, 3])}
    elif dice.random() < 0.6:
        found["modules"] = sorted(dice.sample(["core_attn", "layernorm", "mlp", "moe"], dice.choice([1, 2])))
    return found


def _schedule(dice: Dice, unit: str, length: int) -> Section:
    found: Section = {
        "name": dice.choice(["cosine", "cosine", "linear", "constant", "inverse-square-root", "wsd"]),
    }
    dice.some(found, "warmup_ratio", 0.3, 0.1, 0.5)
    if dice.random() < (0.05 if "warmup_ratio" in found else 0.6):
        found[f"warmup_{unit}"] = dice.often(length // 10, length, length + 5, length - 1, share=0.85)
    if dice.random() < 0.2:
        found[f"constant_{unit}"] = dice.often(length // 10, length, length - 1)
    if found["name"] == "wsd":
        found[f"anneal_{unit}"] = dice.often(length // 5, length, 0)
    return found
