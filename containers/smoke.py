"""Checks whether an image has what a rank needs: imports every engine, prints versions, and runs a kernel on a GPU.

    python3 smoke.py [--no-gpu] [--all]

--all: DeepSpeed, NVML and Transformer Engine must be installed too, as in the images defined here. Exit
code 1 and one line for each thing that is missing. Standard library only until then.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys

# Every rank needs the first; the second are only for stages that use them.
NEEDED = {"torch": "torch", "megatron.core": "megatron-core", "safetensors": "safetensors", "tokenizers": "tokenizers"}
OPTIONAL = {"deepspeed": "deepspeed", "pynvml": "nvidia-ml-py", "transformer_engine": "transformer-engine"}


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


def main(arguments: list[str]) -> int:
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if "--no-gpu" in arguments else "cuda")
    print(f"python: {platform.python_version()}")
    good = look(NEEDED, needed=True)
    good = look(OPTIONAL, needed="--all" in arguments) and good
    if good and "--no-gpu" not in arguments:
        good = try_gpu()
    print("suitable for hpclm" if good else "NOT suitable for hpclm")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
