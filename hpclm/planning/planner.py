"""From a recipe to a plan: every stage resolved, every check run, every finding kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclm.core.spec import PROMPT_TASKS, BatchSpec, ModelSpec, ParallelSpec, PromptData, TaskTemplate
from hpclm.engines import external
from hpclm.engines.command import planning
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.planning import base_model as foundation
from hpclm.planning import input_checks, lowering, memory, rules, section_checks, template_checks, trained_prompts
from hpclm.planning.base_model import Earlier, Foundation
from hpclm.planning.findings import Findings
from hpclm.planning.plan import Origin, Plan, StagePlan, StageWork
from hpclm.planning.stage_context import StageContext

if TYPE_CHECKING:
    from hpclm.recipe.loading import LoadedRecipe


def make_plan(loaded: LoadedRecipe, *, files: bool = True) -> Plan:
    """What the recipe means on its devices.

    Args:
        files: also look at the files the recipe names: rows, text, tokenizers and checkpoints. Without, nothing is
            read, and an architecture must be written in the recipe.

    Raises nothing for a recipe that cannot run: `Plan.errors` says everything that is wrong with it.
    """
    findings = Findings()
    checker = input_checks.Inputs()
    contexts = [StageContext(stage, findings, files) for stage in loaded.stages]
    names = [context.recipe.name for context in contexts]
    earlier: dict[str, Earlier] = {}
    plans = []
    for context in contexts:
        planner = _StagePlanner(context, earlier, names, checker)
        plans.append(planner.plan())
        earlier[context.recipe.name] = Earlier(context, planner.foundation)
    section_checks.check_unused(loaded, contexts, findings)
    return Plan(loaded.name, str(loaded.path), tuple(plans), tuple(findings.items))


class _StagePlanner:
    """Plans one stage; what earlier stages give it is looked up by name."""

    foundation: Foundation

    def __init__(
        self, stage: StageContext, earlier: dict[str, Earlier], names: list[str], checker: input_checks.Inputs
    ) -> None:
        self.stage, self.earlier, self.names, self.checker = stage, earlier, names, checker

    def plan(self) -> StagePlan:
        stage, recipe = self.stage, self.stage.recipe
        if planning.is_program(stage):
            self.foundation = Foundation(None, None, None)
            return planning.plan(stage, self.names)
        if recipe.engine in ("nemo", "megatron-lm"):
            return self._foreign()
        if recipe.after:
            stage.error(("after",), "is for programs; the stages this one needs are known", "after is for programs")
        section_checks.check(stage)
        prompts_stage, prompts = self._prompts()
        seq_length, seq_keys = self._written_length(prompts_stage)
        self.foundation = foundation.lay(stage, self.earlier, prompts_stage, self.names, seq_length)
        self._same_base(prompts_stage)
        model = self.foundation.model
        topology = rules.split_devices(stage)
        accumulation = rules.split_batch(stage, topology)
        data, written_templates = self._data(prompts_stage, model)
        length = work_length(recipe.text.seq_length if recipe.task == "pretrain" and recipe.text else None, data)
        if model is not None:
            rules.split_model(stage, model)
            rules.lengths(stage, model, length, seq_keys)
            self._room_for_answers(model, written_templates)
        rules.sequence_parallel(stage, length, seq_keys)
        rules.precision(stage, lowering.precision(stage))
        rules.prompt_encoder(stage)
        train_rows = self._read_inputs(prompts_stage, data, written_templates)
        total_steps = self._total_steps(train_rows)
        rules.learning_rate(stage, total_steps)
        parallel = lowering.parallel_spec(topology, recipe.parallel.sequence) if topology else None
        batch = lowering.batch(stage, topology.data, accumulation) if topology else None
        stage_work = self._work(batch, data, written_templates, prompts)
        estimate = self._memory(model, parallel, batch, length, written_templates)
        base = self.foundation.base
        depends = [origin.stage for origin in (base, prompts) if origin is not None and origin.stage]
        return StagePlan(
            name=recipe.name,
            task=recipe.task,
            depends_on=tuple(dict.fromkeys(depends)),
            resources=lowering.resources(stage),
            container=lowering.container(stage),
            parallel=parallel,
            gradient_accumulation_steps=batch.gradient_accumulation_steps if batch else None,
            total_steps=total_steps,
            memory=estimate,
            work=stage_work,
            recovery=lowering.recovery(stage),
        )

    def _foreign(self) -> StagePlan:
        """A stage whose trainer is another's: our checks, its configuration."""
        stage, recipe = self.stage, self.stage.recipe
        external.check(stage, self.earlier)
        topology = rules.split_devices(stage)
        parallel = lowering.parallel_spec(topology, recipe.parallel.sequence) if topology else None
        rules.split_batch(stage, topology)
        rules.precision(stage, lowering.precision(stage))
        self.foundation = Foundation(None, None, None)
        data, written = self._data(None, None) if recipe.engine == "nemo" else (None, ())
        if data is not None:
            self._read_inputs(None, data, written)
        rules.learning_rate(stage, recipe.trainer.max_steps if recipe.trainer else None)
        model = external.architecture_of(stage) if recipe.engine == "megatron-lm" else None
        if model is not None:
            rules.split_model(stage, model)
        wanted = external.program(stage, parallel, data, written, model) if not stage.findings.errors else None
        return planning.stage_plan(stage, topology, wanted, external.parents(stage))

    def _prompts(self) -> tuple[Earlier | None, Origin | None]:
        """The stage that evaluate takes prompts from, or prompt learning adds tasks to, and where they lie."""
        name = self.stage.recipe.prompts
        if name is None or self.stage.recipe.task not in (*PROMPT_TASKS, "evaluate"):
            return None, None
        if "/" in name:
            if self.stage.files and not is_archive(name) and not input_checks.is_folder(name):
                self.stage.error(
                    ("prompts",),
                    f"{name}: no such folder; give a prompt-learning run's checkpoints folder",
                    "prompts exist",
                    name,
                )
            elif self.stage.files:
                trained_prompts.check(self.stage, name)
            return None, Origin(path=name)
        found = foundation.find_stage(self.stage, "prompts", name, self.earlier, PROMPT_TASKS, self.names)
        if found is not None:
            trained_prompts.check_new_task(self.stage, found.context)
        return found, Origin(stage=name) if found else None

    def _written_length(self, prompts: Earlier | None) -> tuple[int | None, tuple[str, ...]]:
        """The sequence length as the recipe has it, and its key."""
        recipe = self.stage.recipe
        if recipe.task == "pretrain":
            return recipe.text.seq_length if recipe.text else None, ("text", "seq_length")
        owner = recipe.data or (prompts.context.recipe.data if prompts else None)
        return owner.max_seq_length if owner else None, ("data", "max_seq_length")

    def _same_base(self, prompts: Earlier | None) -> None:
        if prompts is None or self.foundation.base is None or prompts.foundation.base is None:
            return
        if self.foundation.base != prompts.foundation.base:
            self.stage.error(
                ("base",) if self.stage.recipe.base else ("model", "checkpoint"),
                f"{self.foundation.base} is not what the prompts of {prompts.context.recipe.name} were trained on "
                f"({prompts.foundation.base}); leave it out",
                "prompts belong to their base",
            )

    def _data(
        self, prompts: Earlier | None, model: ModelSpec | None
    ) -> tuple[PromptData | None, tuple[TaskTemplate, ...]]:
        """Rows and templates, the stage's own or those of its prompts stage."""
        stage, recipe = self.stage, self.stage.recipe
        if recipe.task == "pretrain":
            return None, ()
        owner = self._owner("data", prompts)
        data = lowering.data(owner, model.max_position_embeddings if model else None) if owner else None
        if recipe.task == "evaluate" and (data is None or not data.test):
            (owner or stage).error(
                ("data", "test"), "is missing, and evaluate needs rows to answer; add JSONL files", "needed section"
            )
        writer = self._owner("task_templates", prompts)
        if writer is None or not writer.recipe.task_templates:
            if recipe.task == "evaluate" and (prompts is None or recipe.task_templates is not None):
                stage.error(
                    ("task_templates",), "is missing, and evaluate needs one a task; add them", "needed section"
                )
            return data, ()
        return data, template_checks.resolve(
            writer, writer.recipe.task_templates, data.max_seq_length if data else None
        )

    def _owner(self, section: str, prompts: Earlier | None) -> StageContext | None:
        if getattr(self.stage.recipe, section) is not None:
            return self.stage
        if prompts is not None and getattr(prompts.context.recipe, section) is not None:
            return prompts.context
        return None

    def _room_for_answers(self, model: ModelSpec, written: tuple[TaskTemplate, ...]) -> None:
        stage, generation = self.stage, self.stage.recipe.generation
        if stage.recipe.task != "evaluate" or generation is None:
            return
        virtual = max((template.total_virtual_tokens for template in written), default=0)
        room = model.max_position_embeddings - virtual
        if generation.max_new_tokens < model.max_position_embeddings and generation.max_new_tokens >= room:
            stage.error(
                ("generation", "max_new_tokens"),
                f"{generation.max_new_tokens} and {virtual} virtual tokens leave no room for a prompt in "
                f"max_position_embeddings {model.max_position_embeddings}; choose less than {room}",
                "max_new_tokens + virtual tokens < max_position_embeddings",
                generation.max_new_tokens,
                (room - 1,),
            )

    def _read_inputs(
        self, prompts: Earlier | None, data: PromptData | None, written: tuple[TaskTemplate, ...]
    ) -> int | None:
        stage = self.stage
        if not stage.files:
            return None
        if stage.recipe.task == "pretrain":
            text = lowering.text(stage)
            if text is not None:
                input_checks.check_text(stage, text)
            return None
        if data is None:
            return None
        owner, writer = self._owner("data", prompts), self._owner("task_templates", prompts)
        return self.checker.check_rows(stage, owner or stage, writer or stage, data, written)

    def _total_steps(self, train_rows: int | None) -> int | None:
        recipe = self.stage.recipe
        if recipe.task == "evaluate" or recipe.trainer is None or recipe.batch is None:
            return None
        if train_rows is not None and 0 < train_rows < recipe.batch.global_size:
            self.stage.warning(
                ("batch", "global"),
                f"{recipe.batch.global_size} is more than the {train_rows} training rows, so a step sees rows twice; "
                f"choose {train_rows} or less",
                "global batch <= training rows",
                recipe.batch.global_size,
                (train_rows,),
            )
        if recipe.trainer.max_steps is not None:
            return recipe.trainer.max_steps
        if recipe.trainer.max_epochs is None or not train_rows:
            return None
        # Incomplete batches are left out, as the ranks' sampler does.
        return recipe.trainer.max_epochs * max(1, train_rows // recipe.batch.global_size)

    def _work(
        self,
        batch: BatchSpec | None,
        data: PromptData | None,
        written: tuple[TaskTemplate, ...],
        prompts: Origin | None,
    ) -> StageWork | None:
        stage, found = self.stage, self.foundation
        if found.model is None or found.tokenizer is None or batch is None:
            return None
        return StageWork(
            model=found.model,
            tokenizer=found.tokenizer,
            batch=batch,
            trainer=lowering.trainer(stage),
            optim=lowering.optim(stage),
            checkpoint=lowering.checkpoint(stage),
            text=lowering.text(stage),
            data=data,
            templates=written,
            prompt=lowering.prompt(stage),
            generation=None if stage.recipe.task == "pretrain" else lowering.generation(stage),
            base=found.base,
            prompts=prompts,
        )

    def _memory(
        self,
        model: ModelSpec | None,
        parallel: ParallelSpec | None,
        batch: BatchSpec | None,
        length: int | None,
        written: tuple[TaskTemplate, ...],
    ) -> memory.MemoryEstimate | None:
        stage = self.stage
        if model is None or parallel is None or batch is None or length is None:
            return None
        estimate = memory.estimate(
            stage.recipe.task,
            model,
            parallel,
            batch,
            lowering.precision(stage),
            seq_length=length,
            prompt=lowering.prompt(stage),
            templates=written,
            generation=lowering.generation(stage),
            recompute=lowering.trainer(stage).recompute,
        )
        rules.host_memory(stage, estimate.total * parallel.devices_per_node)
        return estimate


def work_length(text_length: int | None, data: PromptData | None) -> int | None:
    """Tokens of a sample: of text, or of a prompt with its answer."""
    return text_length if text_length is not None else data.max_seq_length if data else None
