"""The plan of a stage of engine hf."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpclm.core.errors import CheckpointError
from hpclm.core.fine_tune_spec import (
    FineTuneStageSpec,
    HarnessSpec,
    HuggingFaceSpec,
    InstructionData,
    MethodSpec,
    ShardingSpec,
)
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.records import taken
from hpclm.core.spec import BatchSpec, NodeNeeds
from hpclm.engines.hf import hf_rules, instruction_checks, model_checks, prepared_stage
from hpclm.engines.hf.deepspeed_config import ContradictionError, completed, read_configuration
from hpclm.engines.hf.memory import host_memory, memory, note_checkpoints, note_host_memory
from hpclm.engines.hf.section import FineTune, Harness, HuggingFace, Instructions, Sharding
from hpclm.formats.huggingface.model_facts import ModelFacts, model_facts
from hpclm.planning import lowering, parallel_rules, rules, section_checks
from hpclm.planning.base_model import BaseModel, find_stage
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import Origin, StagePlan
from hpclm.planning.specs import checkpoints_of, is_in_run
from hpclm.planning.stage_context import StageContext


class HfPlanner:
    """Plans one stage."""

    def __init__(self, request: StageRequest, packages: tuple[str, ...]) -> None:
        self.request, self.stage, self.packages = request, request.stage, packages
        self.base_model = BaseModel()
        self.facts: ModelFacts | None = None
        self.harness: HarnessSpec | None = None
        self.has_virtual_tokens = False

    def plan(self) -> StagePlan:
        stage, recipe = self.stage, self.stage.recipe
        section_checks.check(stage)
        base = self._base()
        method = self._method()
        undivided = recipe.parallel.tensor == recipe.parallel.pipeline == recipe.parallel.context == 1
        topology = parallel_rules.split_devices(stage) if undivided else None
        world_size = recipe.resources.nodes * recipe.resources.devices_per_node
        accumulation = rules.split_batch(stage, topology)
        parallel = lowering.parallel_spec(topology, recipe.parallel) if topology else None
        batch = lowering.batch(stage, topology.data, accumulation) if topology else None
        if not stage.task.runs_model:
            batch = BatchSpec(1, 1, 1)
        sharding = self._sharding(batch, world_size)
        huggingface = self._huggingface()
        hf_rules.check(stage, method, sharding, huggingface, world_size)
        self.harness = self._harness()
        data = self._data()
        if self.facts is not None:
            model_checks.check(stage, self.facts, method, sharding, data, huggingface)
        train_rows = instruction_checks.check(stage, data) if stage.files and data is not None else None
        total_steps = self._total_steps(train_rows, data)
        rules.learning_rate(stage, total_steps)
        spec = self._spec(base, parallel, batch, data, method, sharding, huggingface)
        estimate = (
            memory(spec, self.facts) if spec is not None and self.facts is not None and stage.task.runs_model else None
        )
        if estimate is not None and spec is not None and self.facts is not None:
            rules.device_memory(stage, estimate.total)
            rules.host_memory(stage, estimate.total * recipe.resources.devices_per_node)
            note_host_memory(stage, spec, self.facts)
            note_checkpoints(stage, spec, self.facts)
            on_disk = host_memory(spec, self.facts).disk * recipe.resources.devices_per_node
            needs = replace(spec.needs, memory_bytes=estimate.total, local_disk=sharding.nvme, local_bytes=on_disk)
            spec = replace(spec, needs=needs)
        return StagePlan(
            name=recipe.name,
            task=recipe.task,
            engine=recipe.engine,
            depends_on=tuple(dict.fromkeys([*([base.stage] if base and base.stage else []), *self._before()])),
            resources=lowering.resources(stage),
            container=lowering.container(stage),
            parallel=parallel,
            gradient_accumulation_steps=batch.gradient_accumulation_steps if batch else None,
            total_steps=total_steps,
            memory=estimate,
            spec=spec,
            recovery=lowering.recovery(stage),
        )

    def _base(self) -> Origin | None:
        """The model's folder, or the earlier stage that tunes it; and what is known of it."""
        stage, recipe = self.stage, self.stage.recipe
        folder = recipe.model.checkpoint if recipe.model is not None else None
        if recipe.base is not None:
            found = find_stage(stage, "base", recipe.base, self.request.earlier, ("fine-tune",), self.request.names)
            if found is None:
                return None
            if found.context.recipe.engine != recipe.engine:
                what = (
                    f"{recipe.base} uses engine {found.context.recipe.engine}, whose checkpoints engine hf cannot read"
                )
                stage.error(("base",), what, "base's engine", recipe.base)
                return None
            self._refuse_adapter(found.context)
            tuned = found.context.recipe.own_section("fine_tune", FineTune)
            self.has_virtual_tokens = tuned is not None and tuned.method in ("p-tuning", "prompt-tuning")
            origin, folder = Origin(stage=recipe.base), found.base_model.folder
        elif folder is None:
            what = f"{recipe.task} needs a model; give model.checkpoint, a folder in transformers' format"
            stage.error(("model", "checkpoint"), what, "base or model.checkpoint")
            return None
        else:
            origin = Origin(path=folder)
        if folder is not None and stage.files:
            try:
                self.facts = model_facts(Path(folder))
            except CheckpointError as error:
                if recipe.base is None:  # else its stage has said so
                    what = model_checks.mended(str(error), Path(folder))
                    stage.error(("model", "checkpoint"), what, "checkpoint exists", folder)
        self.base_model = BaseModel(origin, folder=folder)
        return origin

    def _refuse_adapter(self, parent: StageContext) -> None:
        """A stage that trains needs a whole model, which an adapter's stage does not leave."""
        written = parent.recipe.own_section("fine_tune", FineTune)
        if self.stage.task.trains and written is not None and written.method != "full":
            what = f"{parent.recipe.name} leaves an adapter ({written.method}), on which nothing can be trained; "
            what += "join it with its model in between (hpclm model merge), or train from a stage of method full"
            self.stage.error(("base",), what, "base is a whole model", parent.recipe.name)

    def _method(self) -> MethodSpec:
        written = self.stage.recipe.own_section("fine_tune", FineTune)
        return MethodSpec() if written is None else taken(MethodSpec, written)

    def _huggingface(self) -> HuggingFaceSpec:
        written = self.stage.recipe.own_section("huggingface", HuggingFace)
        return HuggingFaceSpec() if written is None else taken(HuggingFaceSpec, written)

    def _sharding(self, batch: BatchSpec | None, world_size: int) -> ShardingSpec:
        stage = self.stage
        written = stage.recipe.own_section("sharding", Sharding)
        if written is None:
            return ShardingSpec()
        made = taken(ShardingSpec, written, deepspeed={})
        zero = made.strategy.startswith("zero")
        if written.deepspeed is not None and not zero:
            what = f"is for zero1, zero2 and zero3, not {made.strategy}; choose one of them, or leave it out"
            stage.error(("sharding", "deepspeed"), what, "deepspeed is for zero")
        if not zero or batch is None:
            return made
        trainer = lowering.trainer(stage)
        hidden = None if self.facts is None else self.facts.hidden_size
        try:
            user = read_configuration(Path(written.deepspeed)) if written.deepspeed is not None and stage.files else {}
            filled = completed(
                user, made, batch, world_size, trainer.precision, clip=trainer.gradient_clip_norm, hidden_size=hidden
            )
        except ContradictionError as error:
            what = f"{written.deepspeed}: {error.key} {error}"
            stage.error(("sharding", "deepspeed"), what, "deepspeed agrees with the recipe", error.key)
            return made
        except ValueError as error:
            stage.error(("sharding", "deepspeed"), f"{written.deepspeed}: {error}", "deepspeed is JSON")
            return made
        return replace(made, deepspeed=filled)

    def _data(self) -> InstructionData | None:
        stage = self.stage
        written = stage.recipe.own_section("instructions", Instructions)
        role = "test" if stage.task.answers else "train"
        if self.harness is not None and (written is None or not written.test):
            return InstructionData(template="plain", max_seq_length=2)  # no rows of its own
        if written is None:
            stage.needs(("instructions",), f"{role}, files of rows, and template")
            return None
        if not getattr(written, role):
            stage.needs(("instructions", role), "files of rows")
        trainer = stage.recipe.trainer
        if stage.task.trains and not written.validation:
            if trainer is not None and trainer.early_stopping is not None:
                what = "needs validation rows; add instructions.validation, or leave it out"
                stage.error(("trainer", "early_stopping"), what, "validation rows")
            what = "is missing; without val_loss the last checkpoint counts as the best"
            stage.warning(("instructions", "validation"), what, "validation rows")
        return prepared_stage.resolve(self.request, taken(InstructionData, written), self.base_model.folder)

    def _before(self) -> tuple[str, ...]:
        """Stages that must be complete first, beside the base."""
        return tuple(one for one in prepared_stage.parents(self.request) if one in self.request.earlier)

    def _harness(self) -> HarnessSpec | None:
        stage = self.stage
        written = stage.recipe.own_section("harness", Harness)
        if written is None:
            return None
        if not stage.task.answers:
            stage.error(("harness",), "is for evaluate; leave it out, or add an evaluate stage", "harness of evaluate")
        if not written.tasks:
            stage.error(("harness", "tasks"), "is missing; name tasks, as [arc_easy]", "tasks of the harness")
        if self.has_virtual_tokens:
            what = "cannot ask a model with virtual tokens; leave it out, or ask the model that they were trained for"
            stage.error(("harness",), what, "harness without virtual tokens")
        path = written.include_path
        if path is not None and stage.files and not Path(path).is_dir():
            what = f"{path}: is no folder; give the one with your tasks' YAML files"
            stage.error(("harness", "include_path"), what, "include_path is a folder", path)
        return taken(HarnessSpec, written)

    def _total_steps(self, rows: int | None, data: InstructionData | None) -> int | None:
        """None where it depends on how rows pack, or on rows that are left out."""
        recipe = self.stage.recipe
        if not self.stage.task.trains or recipe.trainer is None or recipe.batch is None:
            return None
        if recipe.trainer.max_steps is not None or recipe.trainer.max_epochs is None:
            return recipe.trainer.max_steps
        if rows is None or data is None or data.packing:
            return None
        return recipe.trainer.max_epochs * max(1, rows // recipe.batch.global_size)

    def _spec(
        self,
        base: Origin | None,
        parallel: ParallelSpec | None,
        batch: BatchSpec | None,
        data: InstructionData | None,
        method: MethodSpec,
        sharding: ShardingSpec,
        huggingface: HuggingFaceSpec,
    ) -> FineTuneStageSpec | None:
        stage = self.stage
        if base is None or parallel is None or batch is None or data is None:
            return None
        trainer = lowering.trainer(stage)
        return FineTuneStageSpec(
            run="",
            stage=stage.recipe.name,
            stage_dir="",
            task=stage.recipe.task,
            device=lowering.device(stage),
            base=checkpoints_of(base.stage) if base.stage else str(base.path),
            parallel=parallel,
            batch=batch,
            trainer=trainer,
            optim=lowering.optim(stage),
            checkpoint=lowering.checkpoint(stage),
            data=data,
            method=method,
            sharding=sharding,
            huggingface=huggingface,
            generation=lowering.generation(stage) if stage.task.answers else None,
            harness=self.harness,
            recovery=lowering.recovery(stage),
            tracking=stage.recipe.tracking.trackers if stage.task.trains else {},
            needs=NodeNeeds(
                packages=[*self.packages, *self._also(data, sharding, huggingface)],
                precision=trainer.precision,
                inputs=self._inputs(base, data),
            ),
        )

    def _also(self, data: InstructionData, sharding: ShardingSpec, huggingface: HuggingFaceSpec) -> list[str]:
        """Packages that the recipe's choices need."""
        found = ["deepspeed"] if sharding.strategy.startswith("zero") and self.stage.task.trains else []
        optim, task = self.stage.recipe.optim, self.stage.task
        if optim is not None and task.trains and optim.name in hf_rules.PACKAGES:
            found.append(hf_rules.PACKAGES[optim.name])
        if huggingface.quantization != "none" and task.runs_model and "bitsandbytes" not in found:
            found.append("bitsandbytes")
        if self.harness is not None:
            found.append("lm_eval")
        if any(name.endswith(".parquet") for name in instruction_checks.files(self.stage, data)):
            found.append("pyarrow")
        return found

    def _inputs(self, base: Origin, data: InstructionData) -> list[str]:
        own = None if self.facts is None else self.facts.folder  # an adapter's model
        cache = None if data.cache is None or is_in_run(data.cache) else data.cache
        others = [self.base_model.folder if base.stage else base.path, own, data.chat_template, cache]
        others.append(None if self.harness is None else self.harness.include_path)
        found = (*others, *instruction_checks.files(self.stage, data))
        return list(dict.fromkeys(one for one in found if one is not None))
