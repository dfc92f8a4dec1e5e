"""Checkpoints as Megatron-LM saves them, by megatron-core's own modules: of each of some splits one in the format
`torch_dist` (iteration 5) and one in the format `torch` (iteration 6); beside them the weights of each rank.

python -m tests.support.megatron_saved save FOLDER RANK PORT

`load` reads what is in FOLDER/NAME/written into the same ranks' models, as Megatron-LM does, and compares the weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

LAYERS, WORDS, RANKS = 4, 384, 4
# Tensor, pipeline, virtual pipeline and expert parallel sizes; other ranks are data parallel.
SPLITS = {
    "gpt": ("gpt", 1, 1, 1, 1),
    "llama": ("llama", 1, 1, 1, 1),
    "mixtral": ("mixtral", 1, 1, 1, 1),
    "gpt-tensor": ("gpt", 2, 1, 1, 1),
    "llama-tensor": ("llama", 2, 1, 1, 1),
    "llama-interleaved": ("llama", 1, 2, 2, 1),
    "qwen3-both": ("qwen3", 2, 2, 1, 1),
    "gpt-pipeline": ("gpt", 1, 4, 1, 1),
    "mixtral-expert": ("mixtral", 2, 1, 1, 2),
    "mixtral-stages": ("mixtral", 1, 2, 1, 2),
}
COMMON: dict[str, Any] = {"num_layers": LAYERS, "hidden_size": 32, "num_attention_heads": 4}
LLAMA = {"num_query_groups": 2, "ffn_hidden_size": 64, "add_bias_linear": False, "normalization": "RMSNorm"}
KINDS: dict[str, dict[str, Any]] = {
    "gpt": COMMON,
    "llama": {**COMMON, **LLAMA},
    "qwen3": {**COMMON, **LLAMA, "qk_layernorm": True, "kv_channels": 16},
    "mixtral": {**COMMON, **LLAMA, "num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 64},
}


def arguments(kind: str, split: dict[str, int]) -> argparse.Namespace:
    """What Megatron-LM's parser and checks would have made of the flags; the vocabulary is padded."""
    import torch

    given = {"max_position_embeddings": 32, "padded_vocab_size": WORDS, "vocab_size": WORDS - 6, "ffn_hidden_size": 128,
             "kv_channels": 8, "params_dtype": torch.float32, "group_query_attention": False, "swiglu": False,
             "position_embedding_type": "learned_absolute", "norm_epsilon": 1e-5, "bias_gelu_fusion": True,
             "add_qkv_bias": kind == "gpt"}  # fmt: skip
    given |= KINDS[kind]
    if kind != "gpt":
        given |= {"group_query_attention": True, "swiglu": True, "position_embedding_type": "rope"}
        given |= {"untie_embeddings_and_output_weights": True, "num_experts": given.pop("num_moe_experts", None)}
    return argparse.Namespace(**given, **{f"{name}_model_parallel_size": size for name, size in split.items()})


def main(action: str, folder: Path, rank: int, port: str) -> None:
    warnings.simplefilter("ignore")
    from hpclm.engines.megatron.ranks import cpu_standins

    cpu_standins.install()
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    for name, (kind, *sizes) in SPLITS.items():
        split = dict(zip(("tensor", "pipeline", "virtual_pipeline", "expert"), sizes, strict=True))
        chunks = _model(kind, split)
        if action == "save":
            _save(folder / name, kind, split, rank, chunks)
        else:
            _compare(folder / name, rank, chunks)
        dist.barrier()
    dist.destroy_process_group()


def _model(kind: str, split: dict[str, int]) -> list[Any]:
    from megatron.core import parallel_state, tensor_parallel

    virtual = split["virtual_pipeline"] if split["virtual_pipeline"] > 1 else None
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        split["tensor"], split["pipeline"], virtual, expert_model_parallel_size=split["expert"],
        expert_tensor_parallel_size=split["tensor"], create_gloo_process_groups=False,
    )  # fmt: skip
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    chunks = _chunks(kind, split, virtual)
    for chunk in chunks:
        _clear_padding(chunk)
    return chunks


def _clear_padding(chunk: Any) -> None:
    """Rows of the vocabulary that no token has."""
    import torch
    from megatron.core import parallel_state

    for name, parameter in chunk.named_parameters():
        if name.startswith(("embedding.word", "output_layer")):
            first = parallel_state.get_tensor_model_parallel_rank() * len(parameter)
            with torch.no_grad():
                parameter[max(0, WORDS - 5 - first) :] = 0


def _names(chunks: list[Any]) -> list[str]:
    return ["model"] if len(chunks) == 1 else [f"model{place}" for place in range(len(chunks))]


def _compare(folder: Path, rank: int, chunks: list[Any]) -> None:
    import torch
    from megatron.core import dist_checkpointing

    for chunk in chunks:
        for parameter in chunk.parameters():
            torch.nn.init.zeros_(parameter)
    wanted = {name: chunk.sharded_state_dict() for name, chunk in zip(_names(chunks), chunks, strict=True)}
    found = dist_checkpointing.load(wanted, str(folder / "written" / "release"))
    for name, chunk in zip(_names(chunks), chunks, strict=True):
        chunk.load_state_dict(found[name])
    whole = torch.load(folder / f"whole-{rank}.pt", weights_only=True)
    for name, mine in chunks[0].named_parameters():
        assert torch.equal(mine, whole[name]), name


def _save(folder: Path, kind: str, split: dict[str, int], rank: int, chunks: list[Any]) -> None:
    import torch
    from megatron.core import dist_checkpointing

    names = _names(chunks)
    common = {"args": arguments(kind, split), "checkpoint_version": 3.0}
    target = folder / "iter_0000005"
    target.mkdir(parents=True, exist_ok=True)
    state = {name: chunk.sharded_state_dict() for name, chunk in zip(names, chunks, strict=True)}
    dist_checkpointing.save(state | common | {"iteration": 5}, str(target), ("torch_dist", 1))
    _save_rank(folder, common, {n: c.state_dict_for_save_checkpoint() for n, c in zip(names, chunks, strict=True)})
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    torch.save(dict(chunks[0].named_parameters()), folder / f"whole-{rank}.pt")


def _chunks(kind: str, split: dict[str, int], virtual: int | None) -> list[Any]:
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    more: dict[str, Any] = (
        {} if kind == "gpt" else {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu}
    )
    config = TransformerConfig(
        **KINDS[kind], **more, bias_dropout_fusion=False, masked_softmax_fusion=False,
        tensor_model_parallel_size=split["tensor"], pipeline_model_parallel_size=split["pipeline"],
        virtual_pipeline_model_parallel_size=virtual, expert_model_parallel_size=split["expert"],
        expert_tensor_parallel_size=split["tensor"], pipeline_dtype=torch.float32,
    )  # fmt: skip
    layers = get_gpt_layer_local_spec(
        num_experts=KINDS[kind].get("num_moe_experts"),
        normalization=KINDS[kind].get("normalization"),
        qk_layernorm=KINDS[kind].get("qk_layernorm", False),
    )
    plain = kind == "gpt"
    return [
        GPTModel(
            config=config, transformer_layer_spec=layers, vocab_size=WORDS, max_sequence_length=32,
            position_embedding_type="learned_absolute" if plain else "rope", share_embeddings_and_output_weights=plain,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=place),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=place),
            vp_stage=place if virtual else None,
        )
        for place in range(split["virtual_pipeline"])
    ]  # fmt: skip


def _save_rank(folder: Path, common: dict[str, Any], models: dict[str, Any]) -> None:
    """As get_checkpoint_name and generate_state_dict of megatron/training/checkpointing.py have it."""
    import numpy
    import torch
    from megatron.core import parallel_state

    if parallel_state.get_data_parallel_rank() >= parallel_state.get_expert_model_parallel_world_size():
        return  # another rank has the same weights
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    if parallel_state.get_expert_model_parallel_world_size() > 1:
        name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
    target = folder / "iter_0000006" / name
    target.mkdir(parents=True, exist_ok=True)
    optimizer = {"optimizer": {"param_groups": [{"lr": 0.1, "params": [0]}], "state": {0: {"exp_avg": torch.ones(3)}}},
                 "fp32_from_fp16_params": [[torch.ones(3, requires_grad=True)]]}  # fmt: skip
    rng = [{"np_rng_state": numpy.random.get_state(), "torch_rng_state": torch.get_rng_state()}]
    state = {**common, "iteration": 6, **models, "optimizer": optimizer, "rng_state": rng}
    torch.save(state, target / "model_optim_rng.pt")


if __name__ == "__main__":  # megatron-core writes by processes that it spawns
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
