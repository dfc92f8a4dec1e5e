"""EleutherAI's lm-evaluation-harness on the model of a stage, its questions shared by the ranks."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpclm.core import heartbeat
from hpclm.core.errors import DamagedError, DataError
from hpclm.core.fine_tune_spec import HarnessSpec
from hpclm.core.logging import log
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.data.answered_rows import key_of
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.hf_stage import HfStage
from hpclm.engines.hf.ranks.tuned_adapters import base_of
from hpclm.engines.hf.ranks.tuned_models import Tuned
from hpclm.worker.report import StoppedError

# By task and metric; None for what is no number, as the perplexity of a model that diverged.
Scores = dict[str, dict[str, float | None]]


def benchmark(stage: HfStage, spec: HarnessSpec, tuned: Tuned) -> Scores:
    """Scores by task and metric, on rank 0. A job that is stopped goes on with the task in which it was.

    Raises DataError for what cannot be asked, and StoppedError on all ranks together when one was asked to stop.
    """
    from lm_eval.tasks import TaskManager

    if tuned.virtual is not None:
        raise DataError("harness: a model with virtual tokens cannot be asked by lm-evaluation-harness; ask its base")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tuned.base.set_attn_implementation("sdpa")
    model: Any = _on_ranks()(tuned, stage.group, spec.batch_size)
    manager = TaskManager(include_path=spec.include_path)
    own = sorted(map(str, Path(spec.include_path).rglob("*"))) if spec.include_path else ()
    # another release may ask or count otherwise
    key = f"{version('lm_eval')} {key_of(stage.spec, own, 0, (tuned.folder, base_of(tuned.folder)))}"
    scores, tasks = _earlier(stage, key), list(dict.fromkeys(spec.tasks))
    for number, task in enumerate(tasks):
        if task in scores:
            continue
        stage.progress.update(phase="harness", step=number, total_steps=len(tasks))
        if _stops(stage):
            raise StoppedError(f"stop requested; the harness is through with {number} of {len(tasks)} tasks")
        scores[task] = _asked(task, model, manager, spec)
        if stage.group.rank == 0:
            write_sealed(stage.paths.harness_scores, {"key": key, "scores": scores})
    found = {name: values for of_task in scores.values() for name, values in of_task.items()}
    for name, values in found.items():
        log(f"{name}: {', '.join(f'{metric} {_told(value)}' for metric, value in values.items())}")
    return found


def _earlier(stage: HfStage, key: str) -> dict[str, Scores]:
    """By the tasks that an earlier job of this stage has asked, the same on every rank."""
    found: list[dict[str, Scores]] = [{}]
    if stage.group.rank == 0:
        with contextlib.suppress(DamagedError, OSError):
            written = read_sealed(stage.paths.harness_scores) or {}
            found = [written["scores"]] if written.get("key") == key else found
        if found[0]:
            log(f"the harness is through with {', '.join(found[0])} already")
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _stops(stage: HfStage) -> bool:
    """Whether a rank was asked to; all ranks answer alike."""
    asked = torch.tensor(float(stage.stop.requested), device=stage.group.device)
    dist.all_reduce(asked)
    return bool(asked.item())


def _asked(task: str, model: Any, manager: Any, spec: HarnessSpec) -> Scores:
    """One task, or a group of them with all that are in it. On ranks other than 0 nothing is in it."""
    from lm_eval import simple_evaluate

    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = simple_evaluate(
                model=model,
                tasks=[task],
                task_manager=manager,
                num_fewshot=spec.few_shot,
                limit=spec.limit,
                apply_chat_template=spec.chat_template,
                log_samples=False,
            )
    except (FileNotFoundError, ConnectionError, KeyError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"harness: {task}: {lines[0][:300]}; its data must be in the cache of the datasets package (HF_HOME) or in "
            "files, for a node fetches nothing"
        ) from error
    results: dict[str, dict[str, Any]] = (found or {}).get("results", {})
    return {name: _scores(values) for name, values in results.items()}


def _told(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def _scores(values: dict[str, Any]) -> dict[str, float | None]:
    """The harness' `acc,none` is acc, and `acc,strict` acc (strict)."""
    found: dict[str, float | None] = {}
    for name, value in values.items():
        metric, _, kind = name.partition(",")
        if isinstance(value, int | float) and kind and not metric.endswith("_stderr"):
            found[metric if kind == "none" else f"{metric} ({kind})"] = float(value) if math.isfinite(value) else None
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
