"""EleutherAI's lm-evaluation-harness on the model of a stage, its questions shared by the ranks."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.errors import DataError
from hpclm.core.fine_tune_spec import HarnessSpec
from hpclm.core.logging import log
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.tuned_models import Tuned


def benchmark(tuned: Tuned, spec: HarnessSpec, group: DataGroup) -> dict[str, dict[str, float]]:
    """Scores by task and metric, on rank 0; nothing on the others. Raises DataError for what cannot be asked."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if tuned.virtual is not None:
        raise DataError("harness: a model with virtual tokens cannot be asked by lm-evaluation-harness; ask its base")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tuned.base.set_attn_implementation("sdpa")
    model: Any = _on_ranks()(tuned, group, spec.batch_size)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=model,
                tasks=list(spec.tasks),
                task_manager=TaskManager(include_path=spec.include_path),
                num_fewshot=spec.few_shot,
                limit=spec.limit,
                apply_chat_template=spec.chat_template,
                log_samples=False,
            )
    except (FileNotFoundError, ConnectionError, KeyError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"harness: {', '.join(spec.tasks)}: {lines[0][:300]}; its data must be in the cache of the datasets "
            "package (HF_HOME) or in files, for a node fetches nothing"
        ) from error
    results: dict[str, dict[str, Any]] = (found or {}).get("results", {})
    scores = {task: _scores(values) for task, values in results.items()}
    for task, values in scores.items():
        log(f"{task}: {', '.join(f'{name} {value:.4f}' for name, value in values.items())}")
    return scores


def _scores(values: dict[str, Any]) -> dict[str, float]:
    """The harness' `acc,none` is acc, and `acc,strict` acc (strict)."""
    found = {}
    for name, value in values.items():
        metric, _, kind = name.partition(",")
        if isinstance(value, int | float) and kind and not metric.endswith("_stderr"):
            found[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
    return found


def _on_ranks() -> Any:
    from lm_eval.models.huggingface import HFLM

    class OnRanks(HFLM):  # type: ignore[misc] # it has no types
        """A model that is on every rank; the harness asks each rank its share of the questions."""

        def __init__(self, tuned: Tuned, group: DataGroup, batch_size: int) -> None:
            super().__init__(pretrained=tuned.model, tokenizer=tuned.tokenizer, batch_size=batch_size)
            self._rank, self._world_size, self._device = group.rank, group.world_size, group.device

        def all_gather(self, tensor: Tensor) -> Tensor:
            pieces = [torch.zeros_like(tensor) for _ in range(self._world_size)]
            dist.all_gather(pieces, tensor)
            return torch.stack(pieces) if tensor.dim() == 0 else torch.cat(pieces)

        def barrier(self) -> None:
            dist.barrier()

        def _model_call(self, *given: Any, **also: Any) -> Any:
            heartbeat.beat()
            return super()._model_call(*given, **also)

        def _model_generate(self, *given: Any, **also: Any) -> Any:
            heartbeat.beat()
            return super()._model_generate(*given, **also)

    return OnRanks
