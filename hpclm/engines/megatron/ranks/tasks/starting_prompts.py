"""The starting prompts of a prompt-learning stage: random, from a text's embeddings, or added to trained ones."""

from __future__ import annotations

from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.building import build_prompts
from hpclm.adapters.ranks.p_tuning import PTuning
from hpclm.adapters.ranks.prompt_tuning import PromptTuning
from hpclm.adapters.ranks.soft_prompts import SoftPrompts
from hpclm.core.errors import DataError
from hpclm.core.spec import StageSpec
from hpclm.data.tokenizers import Tokenizer
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.engines.megatron.ranks.stage_models import (
    TrainedPrompts,
    base_checkpoint,
    load_prompts,
    templates_for,
    vocabulary_embeddings,
)


def starting_prompts(
    context: StageContext, config: TransformerConfig, gpt: GPTModel, tokenizer: Tokenizer
) -> tuple[PromptsCard, SoftPrompts | None]:
    """The stage's card and, on the first pipeline stage, its prompts with every weight set."""
    spec = context.spec
    trained = load_prompts(context, config) if spec.prompts is not None else None
    card = _card(spec, trained, tokenizer)
    if not context.groups.is_first_stage:
        return card, None
    prompts = build_prompts(card, config, spec.trainer.seed, context.groups.device)
    for template in prompts.trainable:
        if isinstance(prompts, PromptTuning) and template.prompt_init == "text":
            ids = tokenizer.encode(template.prompt_init_text or "")
            prompts.set_from_text(template, vocabulary_embeddings(gpt, ids, context.groups.device))
        elif isinstance(prompts, PTuning) and prompts.by_name:
            ids = tokenizer.encode(template.taskname)
            prompts.set_name(template, vocabulary_embeddings(gpt, ids, context.groups.device))
    if trained is not None and trained.module is not None:
        for template, table in zip(trained.card.task_templates, trained.module(), strict=True):
            prompts.set_frozen(template, table)
    return card, prompts


def _card(spec: StageSpec, trained: TrainedPrompts | None, tokenizer: Tokenizer) -> PromptsCard:
    assert spec.data is not None
    templates = spec.templates
    frozen: list[str] = []
    if trained is not None:
        frozen = [template.taskname for template in trained.card.task_templates]
        new = [template for template in templates if template.taskname not in frozen]
        if not new:
            raise DataError(
                f"{trained.checkpoint} already contains prompts for {', '.join(frozen)}, which stay frozen: no task "
                "is left to train; add a new task's template to task_templates, or leave prompts out to train all of "
                "them again"
            )
        old = [template for template in templates if template.taskname in frozen]
        templates = [*templates_for(old, trained), *new]
    lengths = None
    if spec.task == "p-tuning" and spec.data.as_nemo:
        lengths = {t.taskname: len(tokenizer.encode(t.taskname)) for t in templates if t.taskname not in frozen}
    base = str(base_checkpoint(spec))
    return PromptsCard(spec.task, spec.prompt, templates, frozen, lengths, base, spec.data.semantics)
