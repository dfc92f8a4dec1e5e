"""The plan of a stage that hpclm's own engine runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import BatchSpec, IndexedData, ModelSpec, NodeNeeds, PromptData, StageSpec, TaskTemplate
from hpclm.core.stage_inputs import Input, stage_inputs
from hpclm.engines.megatron import backends
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.planning import (
    base_model,
    indexed_checks,
    input_checks,
    lowering,
    parallel_rules,
    rules,
    section_checks,
    template_checks,
    trained_prompts,
)
from hpclm.planning.base_model import BaseModel, Earlier
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.megatron_memory import checkpoint_bytes, memory, offloaded_bytes
from hpclm.planning.memory_estimate import MemoryEstimate
from hpclm.planning.plan import Origin, StagePlan
from hpclm.planning.specs import checkpoints_of, is_in_run
from hpclm.planning.stage_context import StageContext
from hpclm.planning.task import tasks_that


class StagePlanner:
    """Plans one stage; the outputs of earlier stages are looked up by name."""

    base_model: BaseModel
    indexed: IndexedData | None

    def __init__(self, request: StageRequest, packages: tuple[str, ...]) -> None:
        self.stage, self.earlier, self.names = request.stage, request.earlier, request.names
        self.checks, self.packages = request.checks, packages

    def plan(self) -> StagePlan:
        stage, recipe = self.stage, self.stage.recipe
        refuse_program_keys(stage)
        section_checks.check(stage)
        prompts_stage, prompts = self._prompts()
        seq_length, seq_keys = self._written_length(prompts_stage)
        self.base_model = base_model.resolve(stage, self.earlier, prompts_stage, self.names, seq_length)
        self._same_base(prompts_stage)
        model = self.base_model.model
        topology = parallel_rules.split_devices(stage)
        accumulation = rules.split_batch(stage, topology)
        rules.training_length(stage, topology)
        data, templates = self._data(prompts_stage, model)
        length = seq_length if data is None else data.max_seq_length
        if model is not None:
            rules.lengths(stage, model, length, seq_keys)
            self._room_for_answers(model, templates)
        indexed = self.indexed = indexed_checks.resolve(stage, self.earlier, self.names)
        if indexed is not None:
            indexed_checks.check(stage, indexed, model)
            indexed_checks.check_whole_validation(stage, indexed)
        self._check_split(model, accumulation, length, seq_keys)
        rules.precision(stage, lowering.precision(stage))
        rules.prompt_encoder(stage)
        rules.adamw(stage)
        parallel = lowering.parallel_spec(topology, recipe.parallel) if topology else None
        batch = lowering.batch(stage, topology.data, accumulation) if topology else None
        spec = self._spec(parallel, batch, data, templates, prompts)
        train_rows = self._read_inputs(prompts_stage, data, templates)
        total_steps = self._total_steps(train_rows)
        rules.learning_rate(stage, total_steps)
        estimate = self._memory(spec)
        origins = [origin for origin in (self.base_model.base, prompts) if origin is not None]
        parents = [origin.stage for origin in origins if origin.stage]
        return StagePlan(
            name=recipe.name,
            task=recipe.task,
            engine=recipe.engine,
            depends_on=tuple(dict.fromkeys((*parents, *indexed_checks.parents(stage)))),
            resources=lowering.resources(stage),
            container=lowering.container(stage),
            parallel=parallel,
            gradient_accumulation_steps=batch.gradient_accumulation_steps if batch else None,
            total_steps=total_steps,
            memory=estimate,
            spec=spec if spec is None or estimate is None else _with_memory(spec, estimate),
            recovery=lowering.recovery(stage),
        )

    def _check_split(
        self, model: ModelSpec | None, accumulation: int | None, length: int | None, keys: tuple[str, ...]
    ) -> None:
        """The keys of `parallel`, of which some are for training of whole models alone."""
        stage, indexed = self.stage, self.stage.recipe.indexed
        if model is not None:
            parallel_rules.split_model(stage, model)
            parallel_rules.stages(stage, model, accumulation)
            parallel_rules.recompute(stage, model)
        parallel_rules.sequence_parallel(stage, length, keys)
        if not stage.task.starts_models:
            who = f"task {stage.recipe.task}"
            parallel_rules.only_plain(stage, who=who, allowed=parallel_rules.PLACES)
            return
        parallel_rules.context_parallel(stage, length, keys)
        if stage.recipe.parallel.context > 1 and indexed is not None and indexed.reset_attention:
            what = "keeps documents apart, which context parallelism does not; set it to false, or parallel.context 1"
            stage.error(("indexed", "reset_attention"), what, "context with whole samples", True, (False,))

    def _prompts(self) -> tuple[Earlier | None, Origin | None]:
        """The stage that evaluate takes prompts from, or prompt learning adds tasks to, and their location."""
        name = self.stage.recipe.prompts
        if name is None or not self.stage.task.takes_prompts:
            return None, None
        if "/" in name:
            if self.stage.files and not is_archive(name) and not input_checks.is_folder(name):
                self.stage.error(
                    ("prompts",),
                    f"{name}: does not exist; give a prompt-learning run's checkpoints folder",
                    "prompts exist",
                    name,
                )
            elif self.stage.files:
                trained_prompts.check(self.stage, name)
            return None, Origin(path=name)
        found = base_model.find_stage(
            self.stage, "prompts", name, self.earlier, tasks_that(learns_prompts=True), self.names
        )
        if found is not None:
            trained_prompts.check_new_task(self.stage, found.context)
        return found, Origin(stage=name) if found else None

    def _written_length(self, prompts: Earlier | None) -> tuple[int | None, tuple[str, ...]]:
        """The sequence length as the recipe has it, and its key."""
        recipe = self.stage.recipe
        if "text" in self.stage.task.sections:
            section = "indexed" if recipe.indexed is not None else "text"
            source = recipe.text or recipe.indexed
            return source.seq_length if source else None, (section, "seq_length")
        owner = recipe.data or (prompts.context.recipe.data if prompts else None)
        return owner.max_seq_length if owner else None, ("data", "max_seq_length")

    def _same_base(self, prompts: Earlier | None) -> None:
        if prompts is None or self.base_model.base is None or prompts.base_model.base is None:
            return
        if self.base_model.base != prompts.base_model.base:
            self.stage.error(
                ("base",) if self.stage.recipe.base else ("model", "checkpoint"),
                f"{self.base_model.base} is not the model that the prompts of {prompts.context.recipe.name} were "
                f"trained on ({prompts.base_model.base}); leave it out",
                "prompts belong to their base",
            )

    def _data(
        self, prompts: Earlier | None, model: ModelSpec | None
    ) -> tuple[PromptData | None, tuple[TaskTemplate, ...]]:
        """Rows and templates, the stage's own or those of its prompts stage."""
        stage, recipe = self.stage, self.stage.recipe
        if not self.stage.task.roles:
            return None, ()
        owner = self._owner("data", prompts)
        data = lowering.data(owner, model.max_position_embeddings if model else None) if owner else None
        if data is not None and recipe.prompts is not None and "/" in recipe.prompts and stage.files:
            data = trained_prompts.as_trained(recipe.prompts, data)
        if stage.task.answers and (data is None or not data.test):
            (owner or stage).error(
                ("data", "test"), "is missing, and evaluate needs test rows; add JSONL files", "needed section"
            )
        writer = self._owner("task_templates", prompts)
        if writer is None or not writer.recipe.task_templates:
            if stage.task.answers and (prompts is None or recipe.task_templates is not None):
                stage.error(
                    ("task_templates",), "is missing, and evaluate needs one per task; add them", "needed section"
                )
            return data, ()
        return data, self._templates(writer, data, prompts)

    def _templates(
        self, writer: StageContext, data: PromptData | None, prompts: Earlier | None
    ) -> tuple[TaskTemplate, ...]:
        """The templates that `writer` has; tasks of the prompts that the stage starts from are frozen."""
        name, frozen = self.stage.recipe.prompts, list[str]()
        if self.stage.task.learns_prompts and prompts is not None:
            frozen = [one.taskname for one in prompts.context.recipe.task_templates or ()]
        path = name if name is not None and "/" in name and self.stage.files else None
        if path is not None and self.stage.task.learns_prompts:
            frozen = list(trained_prompts.trained_counts(path))
        longest, as_nemo = (data.max_seq_length, data.as_nemo) if data else (None, False)
        written = writer.recipe.task_templates or ()
        found = template_checks.resolve(writer, written, longest, frozen, as_nemo=as_nemo)
        if path is not None and is_archive(path):
            found = tuple(trained_prompts.for_archive(path, template) for template in found)
        return found

    def _owner(self, section: str, prompts: Earlier | None) -> StageContext | None:
        if getattr(self.stage.recipe, section) is not None:
            return self.stage
        if prompts is not None and getattr(prompts.context.recipe, section) is not None:
            return prompts.context
        return None

    def _room_for_answers(self, model: ModelSpec, written: tuple[TaskTemplate, ...]) -> None:
        stage, generation = self.stage, self.stage.recipe.generation
        if not stage.task.answers or generation is None:
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
        text = lowering.text(stage)
        if text is not None:
            input_checks.check_text(stage, self._inputs(None, None), text.pattern)
        if data is None:
            return None
        owner, writer = self._owner("data", prompts), self._owner("task_templates", prompts)
        return self.checks.check_rows(stage, owner or stage, writer or stage, data, written)

    def _total_steps(self, train_rows: int | None) -> int | None:
        recipe = self.stage.recipe
        if not self.stage.task.trains or recipe.trainer is None or recipe.batch is None:
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
        steps = lowering.max_steps(self.stage)
        if steps is not None:
            return steps
        if recipe.trainer.max_epochs is None or not train_rows:
            return None
        # Incomplete batches are left out, as the ranks' sampler does.
        return recipe.trainer.max_epochs * max(1, train_rows // recipe.batch.global_size)

    def _spec(
        self,
        parallel: ParallelSpec | None,
        batch: BatchSpec | None,
        data: PromptData | None,
        templates: tuple[TaskTemplate, ...],
        prompts: Origin | None,
    ) -> StageSpec | None:
        """What the ranks will read; None where a finding prevents it."""
        stage, found = self.stage, self.base_model
        if found.model is None or found.tokenizer is None or batch is None or parallel is None:
            return None
        trainer = lowering.trainer(stage)
        return StageSpec(
            run="",
            stage=stage.recipe.name,
            stage_dir="",
            task=stage.recipe.task,
            device=lowering.device(stage),
            model=found.model,
            tokenizer=found.tokenizer,
            parallel=parallel,
            batch=batch,
            trainer=trainer,
            optim=lowering.optim(stage),
            checkpoint=lowering.checkpoint(stage),
            text=lowering.text(stage),
            indexed=self.indexed,
            data=data,
            templates=list(templates),
            prompt=lowering.prompt(stage),
            generation=None if stage.task.starts_models else lowering.generation(stage),
            base=_location(found.base),
            prompts=_location(prompts),
            recovery=lowering.recovery(stage),
            backends=backends.choose(),
            tracking=stage.recipe.tracking.trackers if stage.task.trains else {},
            needs=NodeNeeds(
                packages=[*self.packages, *(["sentencepiece"] if found.tokenizer.sentencepiece else [])],
                precision=trainer.precision,
                inputs=[one.path for one in self._inputs(data, prompts)],
            ),
        )

    def _inputs(self, data: PromptData | None, prompts: Origin | None) -> list[Input]:
        """Every path outside the run that a rank opens."""
        base = self.base_model.base
        made = indexed_checks.parents(self.stage)
        found = stage_inputs(
            roles=self.stage.task.roles,
            data=data,
            text=lowering.text(self.stage),
            indexed=None if made else self.indexed,
            tokenizer=self.base_model.tokenizer,
            base=base.path if base else None,
            prompts=prompts.path if prompts else None,
        )
        prefixes = self.indexed.paths if made and self.indexed is not None else []
        folders = sorted({str(Path(prefix).parent) for prefix in prefixes if not is_in_run(prefix)})
        return [*found, *(Input(("indexed", "stage"), "indexed", folder) for folder in folders)]

    def _memory(self, spec: StageSpec | None) -> MemoryEstimate | None:
        estimate = memory(spec) if spec is not None else None
        if spec is not None and estimate is not None:
            offloaded = offloaded_bytes(spec)
            rules.host_memory(self.stage, (estimate.total + offloaded) * spec.parallel.devices_per_node)
            rules.offloaded_memory(self.stage, offloaded * spec.parallel.devices_per_node)
            rules.device_memory(self.stage, estimate.total)
            beside = offloaded * spec.parallel.devices_per_node
            rules.staging_memory(self.stage, checkpoint_bytes(spec, estimate), beside)
        return estimate


def _with_memory(spec: StageSpec, estimate: MemoryEstimate) -> StageSpec:
    return replace(spec, needs=replace(spec.needs, memory_bytes=estimate.total))


def _location(origin: Origin | None) -> str | None:
    if origin is None:
        return None
    return checkpoints_of(origin.stage) if origin.stage else origin.path


def refuse_program_keys(stage: StageContext) -> None:
    """Keys that only a stage with a program has."""
    recipe = stage.recipe
    if getattr(recipe, "program", None) is not None:
        stage.error(
            ("task",), f"{recipe.task} is a task of hpclm's own engine; with engine: command use program", "task"
        )
    if recipe.after:
        stage.error(
            ("after",), "is only for task: program; base and prompts name this stage's inputs", "after is for programs"
        )
