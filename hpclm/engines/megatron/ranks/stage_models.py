"""Builds a stage's model: the GPT shard, its weights, and the soft prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from hpclm.adapters.prompts_card import PromptsCard
from hpclm.adapters.ranks.building import build_prompts
from hpclm.adapters.ranks.soft_prompts import SoftPrompts
from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import read_object, write_json
from hpclm.core.records import from_dict, to_dict
from hpclm.core.spec import ModelSpec, StageSpec, TaskTemplate
from hpclm.engines.megatron.ranks.gpt_model import build_gpt, initialize_weights, transformer_config
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.formats.archive import Archive
from hpclm.formats.huggingface.architectures import is_huggingface
from hpclm.formats.megatron.model_weights import is_megatron
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.formats.nemo.prompt_tables import read_tables
from hpclm.formats.ranks import checkpoint_store, huggingface_weights
from hpclm.formats.ranks.archived_weights import load_gpt, tensor_of
from hpclm.formats.ranks.checkpoint_manager import resolve
from hpclm.formats.ranks.shards import sharded_tensors


def config_for(
    context: StageContext, *, variable_lengths: bool, generates: bool = False, frozen: bool = False
) -> TransformerConfig:
    """megatron-core's configuration for the stage.

    Decoding one token at a time cannot be split over the sequence. A frozen base uses no dropout: that would only add
    noise to the prompts (and in evaluation mode megatron-core would not recompute activations). Nor do prompts learn to
    balance the experts of a frozen router.
    """
    spec = context.spec
    parallel = replace(spec.parallel, sequence_parallel=False) if generates else spec.parallel
    model = spec.model
    if frozen:
        model = replace(model, hidden_dropout=0.0, attention_dropout=0.0, moe_aux_loss_coeff=0.0, moe_z_loss_coeff=0.0)
    return transformer_config(
        model,
        parallel,
        spec.trainer.precision,
        context.groups.device,
        variable_lengths=variable_lengths,
        recompute=spec.trainer.recompute,
        deterministic=spec.trainer.deterministic,
    )


def load_base(context: StageContext, config: TransformerConfig) -> GPTModel:
    """The base model's shard of this rank, read piece by piece from its checkpoint."""
    assert context.spec.base is not None
    gpt = build_gpt(context.spec.model, config, context.groups, context.spec.backends)
    load_weights(gpt, context.spec.model, context.spec.base)
    return gpt


def load_weights(gpt: GPTModel, model: ModelSpec, base: str) -> None:
    """Fill a shard from a checkpoint of hpclm's or Megatron-LM's, a folder of transformers' or an archive."""
    path = base_weights(base)
    if is_archive(base) or is_megatron(base):
        load_gpt(path, sharded_tensors(gpt), model)
    elif is_huggingface(base):
        huggingface_weights.load_gpt(path, sharded_tensors(gpt), model)
    else:
        checkpoint_store.load(path, sharded_tensors(gpt))


def base_checkpoint(spec: StageSpec) -> Path:
    """What the stage's model starts from."""
    assert spec.base is not None
    return base_weights(spec.base)


def base_weights(base: str) -> Path:
    """The archive, the folder, or the newest checkpoint of a stage."""
    if is_archive(base) or is_huggingface(base) or is_megatron(base):
        return Path(base)
    return resolve(Path(base), prefer="latest")


def start_weights(context: StageContext, config: TransformerConfig) -> list[GPTModel]:
    """A model for full training, a part for each of this rank's chunks of layers: the base's weights where the recipe
    names one, else initialised from the seed."""
    spec = context.spec
    chunks = []
    for chunk in context.groups.chunks:
        gpt = build_gpt(spec.model, config, context.groups, spec.backends, chunk)
        if spec.base is not None:
            load_weights(gpt, spec.model, spec.base)
        else:
            initialize_weights(gpt, spec.model, spec.trainer.seed)
        chunks.append(gpt)
    return chunks


def write_model_card(folder: Path, spec: StageSpec) -> None:
    """`model.json` next to the tensors: the architecture that a later recipe needs."""
    write_json(CheckpointFolder(folder).model, to_dict(spec.model))


def write_prompts_card(folder: Path, card: PromptsCard) -> None:
    """`prompts.json` next to the tensors: what is needed to rebuild the same soft prompts."""
    write_json(CheckpointFolder(folder).prompts, to_dict(card))


@dataclass(frozen=True)
class TrainedPrompts:
    """Prompts from a checkpoint. `module`: None on later pipeline stages."""

    module: SoftPrompts | None
    card: PromptsCard
    checkpoint: Path


def load_prompts(context: StageContext, config: TransformerConfig) -> TrainedPrompts:
    """The trained prompts that the stage names. Raises CheckpointError."""
    spec = context.spec
    assert spec.prompts is not None
    if is_archive(spec.prompts):
        return _from_archive(context, config)
    checkpoint = resolve(Path(spec.prompts), prefer="best")
    found = read_object(CheckpointFolder(checkpoint).prompts)
    if found is None:
        raise CheckpointError(f"{checkpoint}: contains no prompts.json; prompts must name a prompt-learning stage")
    card = from_dict(PromptsCard, found)
    module = None
    if context.groups.is_first_stage:
        module = build_prompts(card, config, spec.trainer.seed, context.groups.device)
        checkpoint_store.load(checkpoint, module.shards())
    return TrainedPrompts(module, card, checkpoint)


def _from_archive(context: StageContext, config: TransformerConfig) -> TrainedPrompts:
    """Prompts of a NeMo archive: tables that are used unchanged."""
    spec = context.spec
    path = Path(spec.prompts or "")
    with Archive(path) as archive:
        tables = {task: tensor_of(archive, facts).float() for task, facts in read_tables(archive).items()}
    for template in spec.templates:
        if template.stored_as is not None:
            tables[template.taskname] = tables[template.stored_as]
    templates = [_template_of(task, len(table), spec.templates) for task, table in tables.items()]
    widths = {table.shape[1] for table in tables.values()}
    if widths != {spec.model.hidden_size}:
        raise CheckpointError(
            f"{path}: its virtual tokens have width {sorted(widths)}, the model {spec.model.hidden_size}; they belong "
            "to another model"
        )
    card = PromptsCard("prompt-tuning", None, templates, kept=list(tables))
    module = None
    if context.groups.is_first_stage:
        module = build_prompts(card, config, spec.trainer.seed, context.groups.device)
        for template in templates:
            module.set_frozen(template, tables[template.taskname])
    return TrainedPrompts(module, card, path)


def _template_of(task: str, count: int, known: list[TaskTemplate]) -> TaskTemplate:
    """The stage's template of a task in an archive, or one that only gives its number of virtual tokens."""
    found = next((one for one in known if one.taskname == task and one.total_virtual_tokens == count), None)
    return found or TaskTemplate(task, "<|VIRTUAL_PROMPT_0|>", count, [count])


def templates_for(wanted: list[TaskTemplate], trained: TrainedPrompts) -> list[TaskTemplate]:
    """The stage's own templates where it has them, in the order of the prompts' table."""
    return _in_order(wanted, trained.card.task_templates, trained.checkpoint)


def _in_order(wanted: list[TaskTemplate], trained: list[TaskTemplate], checkpoint: Path) -> list[TaskTemplate]:
    """The evaluation's templates in the order of the prompts' table; one that is not evaluated keeps its index."""
    by_name = {template.taskname: template for template in wanted}
    known = [template.taskname for template in trained]
    missing = sorted(set(by_name) - set(known))
    if missing:
        raise CheckpointError(
            f"{checkpoint}: no prompts for {', '.join(missing)}; it was trained on {', '.join(known)}"
        )
    for template in trained:
        other = by_name.get(template.taskname)
        if other is not None and other.total_virtual_tokens != template.total_virtual_tokens:
            raise CheckpointError(
                f"{checkpoint}: {template.taskname} was trained with {template.total_virtual_tokens} virtual tokens, "
                f"the recipe's template has {other.total_virtual_tokens}"
            )
    return [by_name.get(template.taskname, template) for template in trained]


@torch.no_grad()
def vocabulary_embeddings(gpt: GPTModel, tokens: list[int], device: torch.device) -> torch.Tensor:
    """The word embeddings [n, h] of `tokens`, fp32, gathered over tensor ranks. First pipeline stage only."""
    ids = torch.tensor([tokens], dtype=torch.int64, device=device)
    embeddings: torch.Tensor = gpt.embedding.word_embeddings(ids)[0].float()
    return embeddings
