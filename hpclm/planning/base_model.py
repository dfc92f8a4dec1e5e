"""Base model resolution: a stage's model and tokenizer, and where their files come from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpclm.core.spec import ModelSpec, TokenizerSpec
from hpclm.formats.megatron.model_weights import iteration_folder
from hpclm.planning import architecture, trained_prompts, vocabulary
from hpclm.planning.plan import Origin
from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import tasks_that


@dataclass(frozen=True)
class BaseModel:
    """What later stages may use of a stage. Where a model or tokenizer is None, a finding says why, or there is none.

    Attributes:
        base: where the weights come from; None: newly initialised.
        data_sets: prefixes of indexed data that it makes.
        folder: of engine hf: the Hugging Face model that was tuned.
    """

    base: Origin | None = None
    model: ModelSpec | None = None
    tokenizer: TokenizerSpec | None = None
    data_sets: tuple[str, ...] = ()
    folder: str | None = None


@dataclass(frozen=True)
class Earlier:
    """An already planned stage: what later stages may use from it."""

    context: StageContext
    base_model: BaseModel


_INSTEAD = {
    "prompts": ", or give a path with a / in it",
    "base": ", or give model.checkpoint",
    "indexed.stage": ", or give indexed.paths",
    "instructions.stage": ", or leave it out, and the first rank tokenises",
}


def find_stage(
    stage: StageContext, key: str, name: str, earlier: Mapping[str, Earlier], tasks: tuple[str, ...], names: list[str]
) -> Earlier | None:
    """The earlier stage called `name`, whose task is one of `tasks`; a finding for `key` (`base`, `indexed.stage`)
    where there is none."""
    keys = tuple(key.split("."))
    fitting = [other for other, found in earlier.items() if found.context.recipe.task in tasks]
    rule = f"{key} is an earlier stage"
    hint = f"choose {' or '.join(fitting)}" if fitting else f"put a {' or '.join(tasks)} stage before this one"
    found = earlier.get(name)
    if found is None:
        if name in names:
            hint = f"move stage {name} before this one" if name != stage.recipe.name else hint
            stage.error(keys, f"{name} is not an earlier stage; {hint}", rule, name, fitting)
            return None
        near = difflib.get_close_matches(name, fitting, n=1)
        hint = f"did you mean {near[0]}?" if near else hint
        stage.error(keys, f"no stage is called {name}; {hint}{_INSTEAD[key]}", rule, name, fitting)
        return None
    if found.context.recipe.task not in tasks:
        stage.error(keys, f"{name} is a {found.context.recipe.task} stage; {hint}", rule, name, fitting)
        return None
    return found


def resolve(
    stage: StageContext,
    earlier: Mapping[str, Earlier],
    prompts: Earlier | None,
    names: list[str],
    seq_length: int | None,
) -> BaseModel:
    """The base model of a stage.

    Args:
        earlier: stages before it, by name.
        prompts: for evaluate, the stage its prompts come from.
        seq_length: of its data, the default for max_position_embeddings.
    """
    recipe = stage.recipe
    checkpoint = _checkpoint(stage, prompts)
    if recipe.base is not None:
        _one_base(stage)
        parent = find_stage(stage, "base", recipe.base, earlier, tasks_that(starts_models=True), names)
        if parent is None:
            return BaseModel()
        engine = parent.context.recipe.engine
        if (engine != recipe.engine or parent.base_model.model is None) and not stage.findings.errors:
            stage.error(
                ("base",),
                f"{recipe.base} uses engine {engine}, whose checkpoints engine {recipe.engine} cannot read; convert "
                "its model and give it as model.checkpoint",
                "base is a stage of the same engine",
                recipe.base,
            )
            return BaseModel()
        return _on_stage(stage, recipe.base, parent)
    if checkpoint is not None:
        return _on_checkpoint(stage, checkpoint, seq_length)
    if prompts is not None:
        model = prompts.base_model.model
        if model is not None:
            model = architecture.agree(stage, model, f"stage {prompts.context.recipe.name}")
        return BaseModel(prompts.base_model.base, model, prompts.base_model.tokenizer)
    if not stage.task.starts_models:
        if stage.task.answers and recipe.prompts is not None and "/" not in recipe.prompts:
            # Its base would have come from its prompts stage, and that error has been reported.
            return BaseModel()
        stage.error(
            ("base",),
            f"{recipe.task} needs a trained model; give model.checkpoint, or base: a pretrain stage of this recipe",
            "base or model.checkpoint",
        )
        return BaseModel()
    return _from_nothing(stage, seq_length)


def _checkpoint(stage: StageContext, prompts: Earlier | None) -> str | None:
    """The checkpoint that the recipe gives, or else the model that a NeMo archive's prompts were trained on."""
    recipe = stage.recipe
    if recipe.model is not None and recipe.model.checkpoint is not None:
        return recipe.model.checkpoint
    reads = recipe.base is None and prompts is None and stage.files and stage.task.takes_prompts
    return trained_prompts.language_model(recipe.prompts) if reads else None


def _one_base(stage: StageContext) -> None:
    """`base` wins over a checkpoint of the recipe's top level; together with one of the stage's own it is ambiguous."""
    node = stage.loaded.tree.get("model", "checkpoint")
    if node is not None and node.value is not None and node.place.key.startswith("stages."):
        stage.error(
            ("model", "checkpoint"), "cannot be combined with base, which also gives the model; keep one", "one base"
        )


def _on_stage(stage: StageContext, name: str, parent: Earlier) -> BaseModel:
    model = parent.base_model.model
    if model is not None:
        model = architecture.agree(stage, model, f"stage {name}")
    node = stage.loaded.tree.get("tokenizer")
    if node is not None and node.value is not None and node.place.key.startswith("stages."):
        stage.warning(("tokenizer",), f"is ignored: stage {name} has the tokenizer; leave it out", "unused section")
    return BaseModel(Origin(stage=name), model, TokenizerSpec("base", model.vocab_size) if model else None)


def _on_checkpoint(stage: StageContext, checkpoint: str, seq_length: int | None) -> BaseModel:
    tokenizer, entries = vocabulary.from_recipe(stage)
    if stage.files:  # of Megatron-LM, whose training may go on meanwhile: every rank reads the same one
        checkpoint = str(iteration_folder(Path(checkpoint)) or checkpoint)
    model = architecture.from_checkpoint(stage, checkpoint) if stage.files else None
    if model is not None:
        model = architecture.agree(stage, model, f"{checkpoint}/model.json")
    elif architecture.written_keys(stage) or not stage.files:
        # The checkpoint could not be read (or must not be): plan with the keys in the recipe.
        model = architecture.from_keys(stage, entries, seq_length)
        if model is None and entries is None and stage.recipe.model and stage.recipe.model.vocab_size is None:
            _no_vocabulary(stage)
    if model is not None:
        if tokenizer is None and stage.recipe.tokenizer is None:
            tokenizer = vocabulary.beside_checkpoint(stage, checkpoint, model.vocab_size)
        vocabulary.fits(stage, entries, model.vocab_size)
    return BaseModel(Origin(path=checkpoint), model, tokenizer)


def _from_nothing(stage: StageContext, seq_length: int | None) -> BaseModel:
    if stage.recipe.tokenizer is None:
        stage.error(
            ("tokenizer",),
            "is missing; give tokenizer.train.vocab_size to train one, or the files of an existing one",
            "tokenizer",
        )
    tokenizer, entries = vocabulary.from_recipe(stage)
    model = architecture.from_keys(stage, entries, seq_length)
    written = stage.recipe.model.vocab_size if stage.recipe.model is not None else None
    if model is None and tokenizer is not None and entries is None and written is None and not stage.files:
        _no_vocabulary(stage)
    if model is not None:
        vocabulary.fits(stage, entries, model.vocab_size)
    return BaseModel(None, model, tokenizer)


def _no_vocabulary(stage: StageContext) -> None:
    if not stage.files or stage.recipe.tokenizer is None:
        stage.error(("model", "vocab_size"), "is not known without the checkpoint; add it", "vocab_size")
