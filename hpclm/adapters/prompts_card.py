"""The card of soft prompts: what is needed to build them again."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpclm.core.spec import PromptSpec, TaskTemplate


@dataclass(frozen=True)
class PromptsCard:
    """What is needed to rebuild soft prompts: `prompts.json` next to their tensors.

    Attributes:
        task: `p-tuning` or `prompt-tuning`.
        task_templates: every task of the table, in its order.
        kept: names of the frozen ones among them, trained elsewhere. This is the key in `prompts.json`, also in
            checkpoints of earlier versions.
        name_lengths: see `PTuning`.
        base: the model that they were trained with.
        semantics: `data.semantics` of their training.
    """

    task: str
    prompt: PromptSpec | None
    task_templates: list[TaskTemplate]
    kept: list[str] = field(default_factory=list)
    name_lengths: dict[str, int] | None = None
    base: str | None = None
    semantics: str | None = None
