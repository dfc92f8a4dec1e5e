"""The tasks of a stage: one module per task, each with `run(context) -> result`."""

from __future__ import annotations

from collections.abc import Callable

from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.engines.megatron.ranks.tasks import evaluate, pretrain, prompt_learning

RUNNERS: dict[str, Callable[[StageContext], dict[str, object]]] = {
    "pretrain": pretrain.run,
    "p-tuning": prompt_learning.run,
    "prompt-tuning": prompt_learning.run,
    "evaluate": evaluate.run,
}
