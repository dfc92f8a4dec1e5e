"""A stand-in for NeMo 23.02's two scripts: takes the configuration as they do, and refuses what they would not know.

Installed under both names; the name says which it is.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

TUNING = {
    "": {"name", "trainer", "exp_manager", "model"},
    "trainer": {
        "devices", "accelerator", "num_nodes", "precision", "logger", "enable_checkpointing", "replace_sampler_ddp",
        "max_epochs", "max_steps", "log_every_n_steps", "val_check_interval", "accumulate_grad_batches",
        "gradient_clip_val", "resume_from_checkpoint", "benchmark",
    },
    "model": {
        "seed", "nemo_path", "virtual_prompt_style", "tensor_model_parallel_size", "pipeline_model_parallel_size",
        "global_batch_size", "micro_batch_size", "restore_path", "language_model_path", "existing_tasks", "new_tasks",
        "task_templates", "prompt_tuning", "p_tuning", "data", "optim",
    },
}  # fmt: skip
EVALUATION = {
    "": {
        "inference", "trainer", "tensor_model_parallel_size", "pipeline_model_parallel_size", "gpt_model_file",
        "virtual_prompt_model_file", "pred_file_path", "data_paths",
    },
    "trainer": {"devices", "num_nodes", "accelerator", "logger", "precision"},
    "inference": {
        "greedy", "top_k", "top_p", "temperature", "add_BOS", "tokens_to_generate", "all_probs", "repetition_penalty",
        "min_tokens_to_generate", "compute_logprob", "batch_size",
    },
}  # fmt: skip


def load() -> dict[str, Any]:
    given: dict[str, str] = {}
    for word in sys.argv[1:]:
        match = re.fullmatch(r"--config-(path|name)=(.*)", word, re.DOTALL)
        assert match is not None, word
        given[match[1]] = match[2]
    config: dict[str, Any] = yaml.safe_load((Path(given["path"]) / f"{given['name']}.yaml").read_text())
    return config


def check(config: dict[str, Any], known: dict[str, set[str]]) -> None:
    for section, keys in known.items():
        found = set(config[section] if section else config)
        if found != keys:
            sys.exit(f"Key {sorted(found ^ keys)} is not in struct\n    full_key: {section}")


def main() -> None:
    config, rank = load(), int(os.environ["RANK"])
    if Path(sys.argv[0]).name.endswith("_eval.py"):
        check(config, EVALUATION)
        if not Path(config["virtual_prompt_model_file"]).exists():
            sys.exit(f"no such file: {config['virtual_prompt_model_file']}")
        if rank == 0:
            rows = [json.loads(line) for path in config["data_paths"] for line in Path(path).read_text().splitlines()]
            Path(config["pred_file_path"]).write_text("".join(f"{row['words']} = a\n" for row in rows))
        return
    check(config, TUNING)
    if not isinstance(config["model"]["optim"]["lr"], float):
        sys.exit(f"lr is {config['model']['optim']['lr']!r}, which is no number")
    if rank == 0:
        Path(config["model"]["nemo_path"]).write_text(json.dumps(config["model"]["new_tasks"]))


if __name__ == "__main__":
    main()
