"""The registries, one per kind of extension. The type of an entry is described where it is used.

Values are `module:attribute`, so that this module, which every package may import, imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclm.core.registry import Registry

if TYPE_CHECKING:
    from hpclm.containers.runtime import Runtime
    from hpclm.metrics.metric import Metric
    from hpclm.planning.engine_protocol import Engine
    from hpclm.planning.task import Task
    from hpclm.recipe.importers.importer import Importer
    from hpclm.schedulers.interface import Scheduler
    from hpclm.tracking.tracker import Tracker

_ENGINES = "hpclm.engines"
_TASKS = "hpclm.tasks"
_IMPORTERS = "hpclm.recipe.importers"

ENGINES: Registry[Engine] = Registry(
    _ENGINES,
    "engine",
    {
        "megatron": f"{_ENGINES}.megatron.engine:ENGINE",
        "nemo": f"{_ENGINES}.nemo.engine:ENGINE",
        "megatron-lm": f"{_ENGINES}.megatron_lm.engine:ENGINE",
        "command": f"{_ENGINES}.command.engine:ENGINE",
        "corpus": f"{_ENGINES}.corpus.engine:ENGINE",
        "hf": f"{_ENGINES}.hf.engine:ENGINE",
    },
    of="hpclm.planning.engine_protocol:Engine",
    aliases={"hpclm": "megatron"},
)
TASKS: Registry[Task] = Registry(
    _TASKS,
    "task",
    {
        "tokenize": f"{_TASKS}.tokenize:TASK",
        "pretrain": f"{_TASKS}.pretrain:TASK",
        "p-tuning": f"{_TASKS}.prompt_learning:P_TUNING",
        "prompt-tuning": f"{_TASKS}.prompt_learning:PROMPT_TUNING",
        "evaluate": f"{_TASKS}.evaluate:TASK",
        "prepare-rows": f"{_TASKS}.prepare_rows:TASK",
        "fine-tune": f"{_TASKS}.fine_tune:TASK",
        "program": f"{_TASKS}.program:TASK",
    },
    of="hpclm.planning.task:Task",
)
SCHEDULERS: Registry[Scheduler] = Registry(
    "hpclm.schedulers",
    "scheduler",
    {
        "local": "hpclm.schedulers.local.scheduler:SCHEDULER",
        "slurm": "hpclm.schedulers.slurm.scheduler:SCHEDULER",
    },
    of="hpclm.schedulers.interface:Scheduler",
)
RUNTIMES: Registry[Runtime] = Registry(
    "hpclm.runtimes",
    "container runtime",
    {
        "pyxis": "hpclm.containers.pyxis:RUNTIME",
        "enroot": "hpclm.containers.enroot:RUNTIME",
        "singularity": "hpclm.containers.singularity:SINGULARITY",
        "apptainer": "hpclm.containers.singularity:APPTAINER",
    },
    of="hpclm.containers.runtime:Runtime",
)
METRICS: Registry[Metric] = Registry(
    "hpclm.metrics",
    "metric",
    {
        "exact_match": "hpclm.metrics.catalog:EXACT_MATCH",
        "squad_exact_match": "hpclm.metrics.catalog:SQUAD_EXACT_MATCH",
        "squad_f1": "hpclm.metrics.catalog:SQUAD_F1",
        "label_accuracy": "hpclm.metrics.catalog:LABEL_ACCURACY",
        "label_macro_f1": "hpclm.metrics.catalog:LABEL_MACRO_F1",
        "bleu": "hpclm.metrics.catalog:BLEU",
        "bleu_zh": "hpclm.metrics.catalog:BLEU_ZH",
        "rouge_1": "hpclm.metrics.catalog:ROUGE_1",
        "rouge_2": "hpclm.metrics.catalog:ROUGE_2",
        "rouge_l": "hpclm.metrics.catalog:ROUGE_L",
        "intent_accuracy": "hpclm.metrics.catalog:INTENT_ACCURACY",
        "slot_f1": "hpclm.metrics.catalog:SLOT_F1",
    },
    of="hpclm.metrics.metric:Metric",
    aliases={"accuracy": "exact_match", "f1": "squad_f1", "rouge": "rouge_l"},
)
IMPORTERS: Registry[Importer] = Registry(
    "hpclm.importers",
    "importer",
    {
        "nemo": f"{_IMPORTERS}.nemo:IMPORTER",
        "megatron": f"{_IMPORTERS}.megatron:IMPORTER",
        "llama-factory": f"{_IMPORTERS}.llama_factory:IMPORTER",
        "axolotl": f"{_IMPORTERS}.axolotl:IMPORTER",
        "trainer": f"{_IMPORTERS}.trainer:IMPORTER",
    },
    of="hpclm.recipe.importers.importer:Importer",
)

TRACKERS: Registry[Tracker] = Registry(
    "hpclm.trackers",
    "tracker",
    {
        "tensorboard": "hpclm.tracking.tensorboard:TRACKER",
        "wandb": "hpclm.tracking.wandb:TRACKER",
        "mlflow": "hpclm.tracking.mlflow:TRACKER",
    },
    of="hpclm.tracking.tracker:Tracker",
)

ALL: tuple[Registry[object], ...] = (ENGINES, TASKS, SCHEDULERS, RUNTIMES, METRICS, IMPORTERS, TRACKERS)
