"""Shared code of engines that run an external program: their checks, and the plan of such a stage."""

from __future__ import annotations

from hpclm.core.spec import NodeNeeds, ProgramSpec, ProgramStageSpec, PromptData, TaskTemplate
from hpclm.core.stage_inputs import stage_inputs
from hpclm.planning import lowering, parallel_rules, rules, template_checks
from hpclm.planning.engine_protocol import StageRequest
from hpclm.planning.plan import StagePlan
from hpclm.planning.stage_context import StageContext
from hpclm.planning.topology import Topology


def check_sections(stage: StageContext, section: str) -> None:
    """What the task needs, the engine's own `section`, and nothing that only hpclm's own engine can read."""
    recipe = stage.recipe
    for needed in ("batch", "trainer", "optim") if stage.task.trains else ():
        if getattr(recipe, needed) is None:
            stage.error((needed,), f"is missing, and {recipe.task} needs it; add it", "needed section")
    rules.adamw(stage)
    if getattr(recipe, section) is None:
        stage.error((section,), f"is missing, and engine: {recipe.engine} needs it; add it", "needed section")
    if recipe.base is not None:
        stage.error(("base",), f"{recipe.engine} cannot read hpclm's checkpoints; give its own model", "engine's model")


def rows_and_templates(request: StageRequest) -> tuple[PromptData | None, tuple[TaskTemplate, ...]]:
    """The stage's own rows and templates, checked."""
    stage = request.stage
    data = lowering.data(stage, None)
    if stage.task.answers and (data is None or not data.test):
        stage.error(("data", "test"), "is missing, and evaluate needs test rows; add JSONL files", "needed section")
    written = stage.recipe.task_templates
    if not written and stage.task.answers:
        stage.error(("task_templates",), "is missing, and evaluate needs one per task; add them", "needed section")
    templates = template_checks.resolve(stage, written, data.max_seq_length if data else None) if written else ()
    if stage.files and data is not None:
        request.checks.check_rows(stage, stage, stage, data, templates)
    return data, templates


def stages_before(request: StageRequest) -> tuple[str, ...]:
    """The stages named in `after`, those that there are."""
    stage, recipe = request.stage, request.stage.recipe
    before = request.names[: request.names.index(recipe.name)]
    for name in recipe.after:
        if name not in before:
            hint = f"choose {' or '.join(before)}" if before else "put that stage before this one"
            what = f"{name} is not an earlier stage; {hint}"
            stage.error(("after",), what, "after is an earlier stage", name, before)
    return tuple(name for name in recipe.after if name in before)


def program_plan(
    request: StageRequest,
    topology: Topology | None,
    program: ProgramSpec | None,
    data: PromptData | None = None,
    parents: tuple[str, ...] = (),
    tracks: tuple[str, ...] = (),
) -> StagePlan:
    """The plan of a stage that runs `program` (None where a finding prevents it).

    Args:
        parents: stages that it needs besides those in `after`.
        tracks: trackers that the program has itself.
    """
    stage, recipe = request.stage, request.stage.recipe
    depends_on = tuple(dict.fromkeys((*stages_before(request), *parents)))
    parallel = lowering.parallel_spec(topology, recipe.parallel) if topology else None
    spec = None
    if parallel is not None and program is not None:
        read = stage_inputs(roles=stage.task.roles, data=data)
        spec = ProgramStageSpec(
            run="",
            stage=recipe.name,
            stage_dir="",
            device=lowering.device(stage),
            parallel=parallel,
            program=program,
            recovery=lowering.recovery(stage),
            needs=NodeNeeds(inputs=[one.path for one in read]),
            engine=recipe.engine,
            tracking={name: one for name, one in recipe.tracking.trackers.items() if name not in tracks},
        )
    return StagePlan(
        name=recipe.name,
        task="program",
        engine=recipe.engine,
        depends_on=depends_on,
        resources=lowering.resources(stage),
        container=lowering.container(stage),
        parallel=parallel,
        gradient_accumulation_steps=None,
        total_steps=None,
        memory=None,
        spec=spec,
        recovery=lowering.recovery(stage),
    )


def split(stage: StageContext) -> tuple[Topology | None, int | None]:
    """The topology and the micro-batches of a rank in a step, with the checks that every trainer shares."""
    topology = parallel_rules.split_devices(stage)
    accumulation = rules.split_batch(stage, topology)
    rules.precision(stage, lowering.precision(stage))
    if lowering.precision(stage) == "tf32":
        what = (
            "tf32 is for engine megatron; choose fp32, and allow TF32 in the image (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1)"
        )
        stage.error(("trainer", "precision"), what, "engine's precision")
    return topology, accumulation
