"""Keys of a DeepSpeed configuration that hpclm takes for itself, or that DeepSpeed no longer has."""

from __future__ import annotations

# What hpclm does itself, so that a section of it would be done twice, or not at all.
OURS = {
    "optimizer": "optim of the recipe",
    "scheduler": "optim.schedule of the recipe",
    "activation_checkpointing": "sharding.checkpointing",
    "tensorboard": "tracking of the recipe",
    "wandb": "tracking of the recipe",
    "csv_monitor": "metrics.jsonl of the stage",
    "elasticity": "hpclm resume, on any number of devices",
    "checkpoint": "the recipe's checkpoint section",
    "autotuning": "hpclm's sweeps",
    "curriculum_learning": "nothing of hpclm's",
    "compression_training": "nothing of hpclm's",
    "sparse_attention": "nothing of hpclm's",
    "data_efficiency": "nothing of hpclm's",
    "amp": "trainer.precision",
    "torch_autocast": "trainer.precision",
    "bfloat16": "trainer.precision",
    "tensor_parallel": "sharding.strategy",
}
# DeepSpeed's runtime/config.py (0.19.8, _REMOVED_TOP_LEVEL_CONFIG_KEYS), which refuses them even where they are off.
REMOVED = (
    "nebula", "quantize_training", "sparse_gradients", "eigenvalue", "graph_harvesting", "progressive_layer_drop",
)  # fmt: skip
REMOVED_OF_ZERO = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
