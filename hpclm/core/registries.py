"""The registries, one per kind of extension. What an entry must be is described where it is used.

Values are `module:attribute`, so that this module, which every package may import, imports none of them.
"""

from __future__ import annotations

from typing import Any

from hpclm.core.registry import Registry

_ENGINES = "hpclm.engines"
_TASKS = "hpclm.tasks"

# planning.engine_protocol.Engine
ENGINES: Registry[Any] = Registry(
    _ENGINES,
    "engine",
    {
        "megatron": f"{_ENGINES}.megatron.engine:ENGINE",
        "nemo": f"{_ENGINES}.nemo.engine:ENGINE",
        "megatron-lm": f"{_ENGINES}.megatron_lm.engine:ENGINE",
        "command": f"{_ENGINES}.command.engine:ENGINE",
    },
    aliases={"hpclm": "megatron"},
)
# planning.task.Task
TASKS: Registry[Any] = Registry(
    _TASKS,
    "task",
    {
        "pretrain": f"{_TASKS}.pretrain:TASK",
        "p-tuning": f"{_TASKS}.prompt_learning:P_TUNING",
        "prompt-tuning": f"{_TASKS}.prompt_learning:PROMPT_TUNING",
        "evaluate": f"{_TASKS}.evaluate:TASK",
        "program": f"{_TASKS}.program:TASK",
    },
)
# schedulers.interface.Scheduler
SCHEDULERS: Registry[Any] = Registry(
    "hpclm.schedulers",
    "scheduler",
    {
        "local": "hpclm.schedulers.local.scheduler:SCHEDULER",
        "slurm": "hpclm.schedulers.slurm.scheduler:SCHEDULER",
    },
)
# containers.runtime.Runtime
RUNTIMES: Registry[Any] = Registry(
    "hpclm.runtimes",
    "container runtime",
    {
        "pyxis": "hpclm.containers.pyxis:RUNTIME",
        "enroot": "hpclm.containers.enroot:RUNTIME",
        "singularity": "hpclm.containers.singularity:SINGULARITY",
        "apptainer": "hpclm.containers.singularity:APPTAINER",
    },
)
# metrics.metric.Metric
METRICS: Registry[Any] = Registry(
    "hpclm.metrics",
    "metric",
    {
        "exact_match": "hpclm.metrics.catalog:EXACT_MATCH",
        "squad_exact_match": "hpclm.metrics.catalog:SQUAD_EXACT_MATCH",
        "squad_f1": "hpclm.metrics.catalog:SQUAD_F1",
        "label_accuracy": "hpclm.metrics.catalog:LABEL_ACCURACY",
        "label_macro_f1": "hpclm.metrics.catalog:LABEL_MACRO_F1",
        "bleu": "hpclm.metrics.catalog:BLEU",
        "rouge_l": "hpclm.metrics.catalog:ROUGE_L",
        "intent_accuracy": "hpclm.metrics.catalog:INTENT_ACCURACY",
        "slot_f1": "hpclm.metrics.catalog:SLOT_F1",
    },
    aliases={"accuracy": "exact_match", "f1": "squad_f1", "rouge": "rouge_l"},
)
# recipe.importers.Importer
IMPORTERS: Registry[Any] = Registry("hpclm.importers", "importer", {"nemo": "hpclm.recipe.importers.nemo:IMPORTER"})

ALL: tuple[Registry[Any], ...] = (ENGINES, TASKS, SCHEDULERS, RUNTIMES, METRICS, IMPORTERS)
