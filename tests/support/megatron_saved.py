"""A checkpoint as Megatron-LM saves it, by megatron-core's own dist_checkpointing; beside it each rank's weights.

python -m tests.support.megatron_saved FOLDER KIND RANKS RANK PORT
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

LAYERS, WORDS = 2, 384
COMMON: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": 32, "num_attention_heads": 4}
LLAMA = {"num_query_groups": 2, "ffn_hidden_size": 64, "add_bias_linear": False, "normalization": "RMSNorm"}
KINDS: dict[str, dict[str, Any]] = {
    "gpt": COMMON,
    "llama": {**COMMON, **LLAMA},
    "mixtral": {**COMMON, **LLAMA, "num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 64},
}


def arguments(kind: str) -> argparse.Namespace:
    """What Megatron-LM's parser and checks would have made of the flags; the vocabulary is padded."""
    import torch

    given = {"max_position_embeddings": 32, "padded_vocab_size": WORDS, "vocab_size": WORDS - 5, "ffn_hidden_size": 128,
             "kv_channels": 8, "params_dtype": torch.float32, "group_query_attention": False, "swiglu": False,
             "position_embedding_type": "learned_absolute", "norm_epsilon": 1e-5, "bias_gelu_fusion": True}  # fmt: skip
    given |= KINDS[kind]
    if kind != "gpt":
        given |= {"group_query_attention": True, "swiglu": True, "position_embedding_type": "rope"}
        given |= {"untie_embeddings_and_output_weights": True, "num_experts": given.pop("num_moe_experts", None)}
    return argparse.Namespace(**given)


def main(folder: str, kind: str, ranks: int, rank: int, port: str) -> None:
    warnings.simplefilter("ignore")
    from hpclm.engines.megatron.ranks import cpu_standins

    cpu_standins.install()
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(ranks))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks, create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    more: dict[str, Any] = (
        {} if kind == "gpt" else {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu}
    )
    config = TransformerConfig(
        **KINDS[kind], **more, bias_dropout_fusion=False, masked_softmax_fusion=False,
        tensor_model_parallel_size=ranks,
    )  # fmt: skip
    layers = get_gpt_layer_local_spec(
        num_experts=KINDS[kind].get("num_moe_experts"), normalization=KINDS[kind].get("normalization")
    )
    plain = kind == "gpt"
    gpt = GPTModel(
        config=config, transformer_layer_spec=layers, vocab_size=WORDS, max_sequence_length=32,
        position_embedding_type="learned_absolute" if plain else "rope", share_embeddings_and_output_weights=plain,
    )  # fmt: skip
    target = Path(folder) / "iter_0000005"
    target.mkdir(parents=True, exist_ok=True)
    state = {"model": gpt.sharded_state_dict(), "args": arguments(kind), "checkpoint_version": 3.0, "iteration": 5}
    dist_checkpointing.save(state, str(target), ("torch_dist", 1))
    (Path(folder) / "latest_checkpointed_iteration.txt").write_text("5")
    torch.save(dict(gpt.named_parameters()), Path(folder) / f"whole-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":  # megatron-core writes by processes that it spawns
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
