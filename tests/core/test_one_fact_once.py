"""Facts that once stood in several places and had drifted apart."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from hpclm.core import fine_tune_spec
from hpclm.core import spec as specs
from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.exit_codes import ExitCode, markdown
from hpclm.core.failures import POLICIES, FailureKind, failure_kind
from hpclm.core.layout import StagePaths
from hpclm.core.parallel_spec import RecomputeSpec
from hpclm.core.registries import ENGINES
from hpclm.engines.corpus.section import Tokenize
from hpclm.engines.hf.section import FineTune, HuggingFace, Instructions, Lora, Sharding, VirtualTokens
from hpclm.recipe.schema.base import Section
from hpclm.recipe.schema.data_sections import Data, Generation, Prompt, Text
from hpclm.recipe.schema.data_sections import TaskTemplate as TemplateSection
from hpclm.recipe.schema.model_section import Model
from hpclm.recipe.schema.recovery_section import Recovery
from hpclm.recipe.schema.training_sections import (
    Checkpointing,
    EarlyStopping,
    Optim,
    Rampup,
    Recompute,
    Schedule,
    Trainer,
)

ROOT = Path(__file__).parents[2]
SUPERVISE = (ROOT / "launch" / "supervise.sh").read_text()


def test_every_failure_has_one_policy() -> None:
    assert set(POLICIES) == set(FailureKind)


def test_words_of_earlier_versions_and_of_none_are_understood() -> None:
    assert failure_kind("no-meeting") is FailureKind.RENDEZVOUS_TIMEOUT
    assert failure_kind("program") is FailureKind.PROGRAM
    assert failure_kind(None) is FailureKind.ERROR


def test_the_page_of_exit_codes_is_in_step() -> None:
    assert (ROOT / "docs" / "exit-codes.md").read_text() == markdown()


def test_one_number_has_one_meaning() -> None:
    assert len({code.value for code in ExitCode}) == len(ExitCode.__members__)


def test_the_jobs_script_ends_with_the_codes_of_the_table() -> None:
    named = re.findall(r"hpclm_event stop ([a-z-]+)\n\s*hpclm_leave (\d+)", SUPERVISE)
    assert {reason: ExitCode(int(code)) for reason, code in named} == {
        "limit": ExitCode.STOPPED,
        "no-nodes": ExitCode.BAD_NODES,
        "requeue-refused": ExitCode.REQUEUE_REFUSED,
        "no-answer": ExitCode.NO_ANSWER,
        "no-interpreter": ExitCode.NO_INTERPRETER,
    }
    others = set(re.findall(r"hpclm_leave (\d+)", SUPERVISE)) - {code for _, code in named}
    assert {ExitCode(int(code)) for code in others} == {
        ExitCode.OK,
        ExitCode.ATTEMPTS,
        ExitCode.TERMINATED,
        ExitCode.SECOND_JOB,
        ExitCode.DISK,
    }


def test_the_jobs_script_writes_where_the_layout_says() -> None:
    stage = StagePaths(Path("$hpclm_stage"))
    attempt = stage.attempt("001", 2)
    text = SUPERVISE.replace('$(printf \'%s-%02d\' "$hpclm_submit" "$HPCLM_RESTART")', attempt.name)
    values = {"$hpclm_submit": "001", "${hpclm_job}": "7", "$hpclm_owner": "6", "$hpclm_attempt": str(attempt.root)}
    for variable, value in values.items():
        text = text.replace(variable, value)
    found = set(re.findall(r"\$hpclm_stage/[\w./%-]+", text))
    assert {Path(path) for path in found} == {
        stage.attempts, stage.spent("001"), stage.claim("001"), stage.claim_after("001", "6"), stage.events,
        stage.job_exit("7"), stage.batch_log("7"), stage.result,
        attempt.root, attempt.logs, attempt.ranks, attempt.preflight, attempt.decision_line, attempt.bad_nodes,
        attempt.logs / "%5t.log", attempt.root / ".probe",
    }  # fmt: skip
    assert attempt.log(3).name == f"{3:05d}.log"  # as srun writes %5t.log


# Keys whose meaning is derived rather than taken by name: (section, key) → where it goes.
DERIVED = {
    ("Optim", "betas"): "beta1 and beta2",
    ("Optim", "schedule"): "schedule, warmup_steps and constant_steps",
    ("Schedule", "name"): "OptimSpec.schedule",
    ("Schedule", "warmup_samples"): "warmup_steps, of train_samples",
    ("Schedule", "constant_samples"): "constant_steps, of train_samples",
    ("Schedule", "anneal_samples"): "anneal_steps, of train_samples",
    ("Tokenize", "json_keys"): "CorpusSpec.keys",
    ("Tokenize", "format"): "CorpusSpec.form",
    ("Tokenize", "out"): "CorpusSpec.prefix",
    ("Model", "checkpoint"): "StageSpec.base",
    ("Instructions", "stage"): "InstructionData.cache",
}
PAIRS: list[tuple[type[Section], type]] = [
    (Trainer, specs.TrainerSpec),
    (Optim, specs.OptimSpec),
    (Schedule, specs.OptimSpec),
    (Rampup, specs.RampupSpec),
    (Tokenize, CorpusSpec),
    (Checkpointing, specs.CheckpointSpec),
    (EarlyStopping, specs.EarlyStoppingSpec),
    (Recompute, RecomputeSpec),
    (Text, specs.TextData),
    (Data, specs.PromptData),
    (TemplateSection, specs.TaskTemplate),
    (Prompt, specs.PromptSpec),
    (Generation, specs.GenerationSpec),
    (Recovery, specs.RecoverySpec),
    (Model, specs.ModelSpec),
    (Lora, fine_tune_spec.LoraSpec),
    (VirtualTokens, fine_tune_spec.VirtualTokensSpec),
    (FineTune, fine_tune_spec.MethodSpec),
    (Sharding, fine_tune_spec.ShardingSpec),
    (Instructions, fine_tune_spec.InstructionData),
    (HuggingFace, fine_tune_spec.HuggingFaceSpec),
]


@pytest.mark.parametrize(("section", "spec"), PAIRS, ids=lambda one: one.__name__)
def test_no_key_of_a_recipe_is_lost_on_the_way_to_the_ranks(section: type[BaseModel], spec: type) -> None:
    fields = set(spec.__dataclass_fields__)  # type: ignore[attr-defined]
    lost = [key for key in section.model_fields if key not in fields and (section.__name__, key) not in DERIVED]
    assert lost == []


# Names of files in a run that only core's layout may spell.
LAYOUT = {
    "run.json", "sweep.json", "spec.json", "result.json", "resolved.json", "plan.json", "environment.json", "job.sh",
    "progress.json", "metrics.jsonl", "events.jsonl", "decision.json", "verdict.json", "rendezvous.json", "jobs.json",
    "state.json", "queue.json", "queue-state.json", "queue.log", "supervisor.log", "nodes.jsonl", "scheduler.json",
    "manifest.json", "model.json", "prompts.json", "best.json", "latest.json", "heartbeat", "reporter", "checkpoints",
}  # fmt: skip
# What is not a run's: keys of JSON, another's folder, a file of the same name elsewhere.
ELSEWHERE = {
    ("schedulers/slurm/survey.py", "job.sh"): "doctor's own job",
    ("schedulers/slurm/scheduler.py", "job.sh"): "the word that a dry run shows",
    ("engines/command/run.py", "checkpoints"): "a placeholder of programs",
    ("engines/command/section.py", "checkpoints"): "the same placeholder",
    ("runs/collect.py", "checkpoints"): "a key of collect's JSON",
    ("nodes/preflight.py", "spec.json"): "a message",
    ("worker/entry.py", "spec.json"): "a message",
    ("runs/record.py", "run.json"): "a message",
    ("runs/sweep.py", "sweep.json"): "a message",
}


def test_paths_of_a_run_are_spelled_in_the_layout_alone() -> None:
    found = []
    for path in sorted((ROOT / "hpclm").rglob("*.py")):
        inner = str(path.relative_to(ROOT / "hpclm"))
        if inner in ("core/layout.py", "core/sweep_layout.py", "core/checkpoint_layout.py"):
            continue
        tree = ast.parse(path.read_text())
        found += [
            (inner, node.value, node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value in LAYOUT and (inner, node.value) not in ELSEWHERE
        ]
    assert found == []


def test_lists_of_packages_stand_in_the_engines_alone() -> None:
    assert "torch" in ENGINES.get("megatron").packages
    naming = [
        str(path.relative_to(ROOT / "hpclm"))
        for path in (ROOT / "hpclm").rglob("*.py")
        if re.search(r'"megatron",\s*"numpy"', path.read_text())
    ]
    assert naming == ["engines/megatron/engine.py"]
