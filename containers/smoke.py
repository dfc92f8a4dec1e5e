"""Checks whether an image has what a rank needs: imports every engine, prints versions, and runs a kernel on a GPU.

    python3 smoke.py [--no-gpu] [--all] [--train]

--all: what only some stages need must be installed too, as in the images defined here. --train: also a
training step of a small GPT of megatron-core, with NCCL. Exit code 1 and one line for each thing that is missing.
Standard library only until then.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys

# Every rank needs the first; the second are only for stages that use them.
# Of megatron-core the model, since that is what an unfitting Transformer Engine breaks.
NEEDED = {
    "torch": "torch",
    "megatron.core.models.gpt": "megatron-core",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
}
OPTIONAL = {
    "deepspeed": "deepspeed",
    "pynvml": "nvidia-ml-py",
    "transformer_engine": "transformer-engine",
    "sentencepiece": "sentencepiece",
    "transformers.models.llama.modeling_llama": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "lion_pytorch": "lion-pytorch",
}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def look(modules: dict[str, str], *, needed: bool) -> bool:
    good = True
    for module, package in modules.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken extension may raise anything
            print(f"{package}: {'MISSING' if needed else 'not installed'} ({type(error).__name__}: {error})")
            good = good and not needed
        else:
            print(f"{package}: {version(package)}")
    return good


def try_gpu() -> bool:
    import torch

    if not torch.cuda.is_available():
        print("GPU: MISSING (torch sees none: started without --nv, or NVIDIA_VISIBLE_DEVICES is not set?)")
        return False
    total = torch.ones(256, 256, device="cuda").matmul(torch.ones(256, 256, device="cuda")).sum().item()
    print(f"GPU: {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} seen")
    return total == 256.0**3


def train(device: str, backend: str) -> bool:
    """Forward, backward and an all-reduce of a GPT of one layer; whether its loss is that of an untrained model."""
    import time

    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    began = time.perf_counter()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=1, hidden_size=64, num_attention_heads=4, bias_dropout_fusion=False, masked_softmax_fusion=False
    )
    words = 128
    layers = get_gpt_layer_local_spec()
    gpt = GPTModel(config=config, transformer_layer_spec=layers, vocab_size=words, max_sequence_length=16).to(device)
    tokens = torch.arange(32, device=device).view(2, 16)
    positions = torch.arange(16, device=device).expand(2, 16)
    mask = torch.ones(16, 16, dtype=torch.bool, device=device).triu(1)[None, None]
    loss = gpt(tokens, positions, mask, labels=tokens).float().mean()
    loss.backward()
    dist.all_reduce(gpt.embedding.word_embeddings.weight.grad)
    found = loss.item()
    dist.destroy_process_group()
    print(f"training: a step with {backend} on {device} in {time.perf_counter() - began:.1f} s, loss {found:.2f}")
    return abs(found - 4.85) < 0.5  # ln 128


def main(arguments: list[str]) -> int:
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if "--no-gpu" in arguments else "cuda")
    print(f"python: {platform.python_version()}")
    good = look(NEEDED, needed=True)
    good = look(OPTIONAL, needed="--all" in arguments) and good
    if good and "--no-gpu" not in arguments:
        good = try_gpu()
        if good and "--train" in arguments:
            good = train("cuda", "nccl")
    print("suitable for hpclm" if good else "NOT suitable for hpclm")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
