"""A model that has learned nothing, from a configuration: where pre-training with engine hf begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from hpclm.core.errors import CheckpointError
from hpclm.core.files import sync
from hpclm.engines.hf.ranks.base_models import beside
from hpclm.engines.hf.ranks.hf_loading import load_tokenizer
from hpclm.engines.hf.ranks.precision import dtype_of


def initialize(source: Path, out: Path, tokenizer: Path | None, seed: int, dtype: str) -> int:
    """A folder in transformers' format with weights drawn as the architecture draws them; the same seed draws the same.

    Args:
        source: a folder with config.json, or the file.
        tokenizer: a folder with a tokenizer; None: `source`'s.

    Returns the number of parameters. Raises CheckpointError; then there is no `out`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = source.parent if source.is_file() else source
    found = load_tokenizer(tokenizer or folder, remote_code=False)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever transformers finds wrong with it
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{source}: no model can be made of it ({lines[0][:300]})") from error
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(found) > vocabulary:
        raise CheckpointError(
            f"{source}: vocab_size is {vocabulary}, and the tokenizer has {len(found)} tokens; set it to that or more"
        )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.to(dtype_of(dtype)).save_pretrained(partial, max_shard_size="5GB")
        for path in beside(tokenizer or folder):
            if path.name not in ("config.json", "generation_config.json"):
                shutil.copyfile(path, partial / path.name)
        sync(partial)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return int(model.num_parameters())
