"""Stages that NeMo or Megatron-LM carries out: their configuration whole, and the way through their own scripts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.spec import ProgramStageSpec
from hpclm.engines.nemo.config import as_yaml
from hpclm.planning import Plan, make_plan
from hpclm.recipe import load
from tests.support.indexed_pair import indexed_pair
from tests.support.samples import changed, write

STANDINS = Path(__file__).with_name("standins")
TUNE = {"name": "ptune", "task": "p-tuning", "engine": "nemo"}
ANSWER = {"name": "answer", "task": "evaluate", "engine": "nemo", "prompts": "ptune"}
PRETRAIN = {"name": "pretrain", "task": "pretrain", "engine": "megatron-lm"}
DROPPED = ("model", "tokenizer", "text", "container")


def nemo_recipe(folder: Path, *changes: tuple[str, Any]) -> Path:
    """The sample's prompt learning by NeMo, which lies in `folder`/nemo."""
    scripts = folder / "nemo" / "examples" / "nlp" / "language_modeling"
    scripts.mkdir(parents=True)
    for name in ("megatron_gpt_prompt_learning.py", "megatron_gpt_prompt_learning_eval.py"):
        shutil.copy(STANDINS / "nemo.py", scripts / name)
    recipe = changed(
        ("nemo", {"folder": str(folder / "nemo"), "model": "/models/gpt.nemo"}),
        ("stages", [dict(TUNE), dict(ANSWER)]),
        ("optim.lr", 0.00001),
        *changes,
    )
    for key in DROPPED:
        recipe.pop(key, None)
    return write(folder, recipe)


def megatron_recipe(folder: Path, *changes: tuple[str, Any]) -> Path:
    script = folder / "pretrain_gpt.py"
    shutil.copy(STANDINS / "pretrain_gpt.py", script)
    (folder / "vocab.json").write_text(json.dumps({f"t{number}": number for number in range(512)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    section = {
        "script": str(script),
        "data_path": ["0.3", "/data/a b {x}", "0.7", "/data/c"],
        "arguments": ["--use-flash-attn"],
    }
    recipe = changed(
        ("megatron", section),
        ("tokenizer", {"vocab_file": "vocab.json", "merges_file": "merges.txt"}),
        ("stages", [dict(PRETRAIN)]),
        ("container", None),
        *changes,
    )
    for key in ("data", "task_templates", "prompt", "generation", "text"):
        del recipe[key]
    return write(folder, recipe)


@pytest.fixture
def hpclm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str, code: int = 0) -> str:
        ended = cli.run(list(arguments))
        out, err = capsys.readouterr()
        assert ended == code, out + err
        return out + err

    return command


def test_nemos_configuration_whole(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    plan = make_plan(load(nemo_recipe(tmp_path)))
    assert plan.errors == ()
    for stage in plan.stages:
        assert stage.program is not None
        text = json.dumps(stage.program.argv, indent=1) + "\n" + stage.program.files["hpclm_nemo.yaml"]
        golden(f"nemo-{stage.name}.txt", text.replace(str(tmp_path), "/recipes"))
    assert plan.stages[1].depends_on == ("ptune",)


def test_megatrons_flags_whole(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    plan = make_plan(load(megatron_recipe(tmp_path)))
    assert plan.errors == ()
    program = plan.stages[0].program
    assert program is not None
    golden("megatron-lm.txt", "\n".join(program.argv).replace(str(tmp_path), "/recipes") + "\n")


@pytest.mark.parametrize(
    ("number", "text"), [(1e-05, "1.0e-05"), (2.5e-07, "2.5e-07"), (0.0001, "0.0001"), (1e16, "1.0e+16")]
)
def test_numbers_stay_numbers_in_yaml(number: float, text: str) -> None:
    import yaml

    written = as_yaml({"a": number, "b": [number, number], "c": "1e-05"})
    assert text in written
    assert yaml.safe_load(written) == {"a": number, "b": [number, number], "c": "1e-05"}


@pytest.mark.slow
def test_through_nemos_scripts(hpclm: Callable[..., str], tmp_path: Path) -> None:
    nemo_recipe(tmp_path)
    hpclm("submit", "recipe.yaml", "--wait", "--runs-dir", str(tmp_path / "it's a folder"))
    (made,) = tmp_path.glob("it's a folder/*/stages/ptune/prompts.nemo")
    assert json.loads(made.read_text()) == ["first"]
    hpclm("collect", "--runs-dir", str(tmp_path / "it's a folder"))
    (answers,) = tmp_path.glob("it's a folder/*/results/outputs/answer/predictions.txt")
    assert len(answers.read_text().splitlines()) == 16


@pytest.mark.slow
def test_through_megatrons_script(hpclm: Callable[..., str], tmp_path: Path) -> None:
    megatron_recipe(tmp_path)
    hpclm("submit", "recipe.yaml", "--wait")
    (run,) = json.loads(hpclm("status", "--json"))["runs"]
    assert (run["stages"][0]["step"], run["stages"][0]["total_steps"], run["stages"][0]["loss"]) == (10, 10, 0.9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            (("stages.0.task", "pretrain"),),
            "nemo does not support pretrain; choose p-tuning or prompt-tuning or evaluate",
        ),
        ((("nemo", None),), "engine: nemo needs it"),
        ((("data.validation", []),), "NeMo needs it; add JSONL files"),
        ((("optim.schedule.name", "linear"),), "is always cosine"),
        ((("stages.1.prompts", "nobody"),), "nobody is not an earlier prompt-learning stage"),
        ((("stages.0.after", ["nobody"]),), "nobody is not an earlier stage"),
        ((("parallel.tensor", 1),), "NeMo evaluates without data parallelism: 2 devices"),
        ((("batch.global", 7),), "7"),
        ((("task_templates.0.truncate_field", "nothing"),), "nothing"),
    ],
)
def test_what_nemo_cannot_do_is_said_with_its_line(
    hpclm: Callable[..., str], tmp_path: Path, changes: tuple[tuple[str, Any], ...], words: str
) -> None:
    nemo_recipe(tmp_path, *changes)
    said = hpclm("submit", "recipe.yaml", code=3)
    assert words in said
    assert "recipe.yaml:" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((("stages.0.task", "p-tuning"),), "megatron-lm does not support p-tuning"),
        ((("megatron", None),), "engine: megatron-lm needs it"),
        ((("trainer", {"max_epochs": 2}),), "counts steps, not epochs"),
        ((("tokenizer", None),), "--tokenizer-type"),
        ((("trainer.val_check_interval", 0.5),), "val_check_interval: is a fraction of an epoch"),
        ((("trainer.early_stopping", {"patience": 2}),), "early_stopping: has no flag of Megatron-LM"),
        ((("trainer.seed", 0),), "seed: is 0, and Megatron-LM refuses it"),
        ((("tokenizer", {"train": {"vocab_size": 512}}),), "Megatron-LM trains no tokenizer"),
        ((("optim.schedule.warmup_steps", 10),), "10 warm-up steps are not less than the 10"),
        ((("megatron.data_path", []),), "indexed: is missing; add indexed with paths"),
        ((("indexed", {"paths": ["x"]}),), "indexed.paths are both given; keep indexed"),
        ((("stages.0.text", {"paths": ["."]}),), "text: is not read by Megatron-LM"),
        ((("megatron.arguments", ["--lr", "1"]),), "--lr is made from optim.lr; set that instead"),
        ((("parallel.sequence", True), ("model.max_position_embeddings", 63)), "63 is not a multiple of tensor 2"),
        ((("parallel.tensor", 3), ("resources.devices_per_node", 3)), "3"),
        (
            (("model.position_embedding", "rope"), ("model.rotary_interpolation", 1.5)),
            "1.5 is not whole, and Megatron-LM's flag takes whole numbers",
        ),
        ((("model.checkpoint", "models/gpt"),), "checkpoint: has no flag of Megatron-LM"),
        ((("megatron.arguments", ["--swiglu"]),), "--swiglu is made from model.activation"),
        ((("megatron.arguments", ["--adam-beta1=0.8"]),), "--adam-beta1 is made from optim.betas"),
        ((("megatron.arguments", ["--vocab-file", "x"]),), "--vocab-file is made from tokenizer"),
        ((("megatron.arguments", ["--mock-data"]),), "--mock-data names other data"),
        ((("megatron.arguments", ["--overlap-param-gather"]),), "is made from parallel.overlap; set that instead"),
        ((("megatron.arguments", ["--use-torch-fsdp2"]),), "needs --no-gradient-accumulation-fusion"),
        ((("megatron.arguments", ["--ckpt-format", "torch_dcp"]),), "torch_dcp needs --use-torch-fsdp2"),
        ((("megatron.arguments", ["--decoder-seq-length", "100"]),), "the length is the data's"),
        ((("megatron.arguments", ["--weight-decay-incr-style", "linear"]),), "needs --start-weight-decay"),
        ((("megatron.arguments", ["foo", "--use-flash-attn"]),), "foo belongs to no flag"),
        ((("megatron.arguments", ["--batch-size", "4"]),), "--batch-size is no longer Megatron-LM's; set batch.micro"),
        ((("megatron.arguments", ["--model-parallel-size", "2"]),), "no longer Megatron-LM's; set parallel.tensor"),
        ((("megatron.arguments", ["--use-checkpoint-args"]),), "takes the model from elsewhere"),
        ((("megatron.arguments", ["--yaml-cfg", "f.yaml"]),), "takes model and split from elsewhere"),
        (
            (("megatron.arguments", ["--encoder-tensor-model-parallel-size", "2"]),),
            "is for other models, and changes the number of ranks",
        ),
        (
            (("megatron.arguments", ["--num-distributed-optimizer-instances", "2"]),),
            "--num-distributed-optimizer-instances 2 does not divide the 1 ranks that share weights",
        ),
        (
            (("megatron.arguments", ["--num-distributed-optimizer-instances", "0"]),),
            "--num-distributed-optimizer-instances 0 does not divide",
        ),
        ((("model.vocab_size", 1000),), "1000 is not passed on: Megatron-LM takes the tokenizer's 512 entries"),
        (
            (("megatron.arguments", ["--use-flash-attn"]), ("trainer.deterministic", True)),
            "--use-flash-attn does not go with trainer.deterministic",
        ),
    ],
)
def test_what_megatron_lm_cannot_do_is_said_with_its_line(
    hpclm: Callable[..., str], tmp_path: Path, changes: tuple[tuple[str, Any], ...], words: str
) -> None:
    megatron_recipe(tmp_path, *changes)
    said = hpclm("submit", "recipe.yaml", code=3)
    assert words in said
    assert "recipe.yaml:" in said


def test_whole_numbers_and_the_environment_of_a_deterministic_run_are_passed_on(tmp_path: Path) -> None:
    rope = (("model.position_embedding", "rope"), ("model.rotary_interpolation", 4), ("trainer.deterministic", True))
    made = make_plan(load(megatron_recipe(tmp_path, *rope, ("megatron.arguments", []))))
    assert made.errors == ()
    spec = made.stages[0].spec
    assert isinstance(spec, ProgramStageSpec)
    argv = spec.program.argv
    assert argv[argv.index("--rotary-seq-len-interpolation-factor") + 1] == "4"
    # validate_args: "NCCL_ALGO must be one of"
    assert spec.program.environment["NCCL_ALGO"] in ("Tree", "Ring", "CollnetDirect", "CollnetChain", "^NVLS")


def test_every_key_has_its_flag(tmp_path: Path) -> None:
    """What Megatron-LM's parser of core_v0.14.0 takes, key by key."""
    indexed = {
        "paths": ["a", "b"],
        "weights": [0.25, 0.75],
        "split": "90,10",
        "seq_length": 32,
        "cache": "cache",
        "reset_positions": True,
        "reset_attention": True,
        "mask_end_loss": True,
    }
    changes: tuple[tuple[str, Any], ...] = (
        ("megatron.data_path", []),
        ("indexed", indexed),
        ("trainer.max_steps", 100),
        ("parallel.order", "tp-cp-ep-pp-dp"),
        ("trainer.recompute", {"granularity": "full", "method": "block", "num_layers": 1}),
        (
            "optim.schedule",
            {"name": "wsd", "warmup_ratio": 0.1, "constant_steps": 5, "anneal_steps": 20, "anneal": "cosine"},
        ),
        ("model.position_embedding", "rope"),
        ("model.rotary_base", 5e5),
        ("model.rotary_scaling_factor", 8.0),
        ("model.qk_norm", True),
        ("model.add_bias_linear", False),
        ("model.add_qkv_bias", True),
        ("model.num_query_groups", 2),
    )
    plan = make_plan(load(megatron_recipe(tmp_path, *changes)))
    assert {one.rule for one in plan.errors} == {"indexed data exists"}
    for name in "ab":
        indexed_pair(tmp_path / name)
    plan = make_plan(load(tmp_path / "recipe.yaml"))
    assert plan.errors == ()
    program = plan.stages[0].program
    assert program is not None
    words = " ".join(program.argv).replace(str(tmp_path), "")
    for expected in (
        "--data-path 0.25 /a 0.75 /b ",
        "--split 90,10,0 --data-cache-path /cache",
        "--seq-length 32",
        "--reset-position-ids --reset-attention-mask --eod-mask-loss",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
        "--lr-decay-style WSD --lr-decay-iters 95 --lr-warmup-iters 10",
        "--lr-wsd-decay-style cosine --lr-wsd-decay-iters 20",
        "--rotary-base 500000 --rope-scaling-factor 8.0",
        "--use-rope-scaling",
        "--use-tp-pp-dp-mapping",
        "--qk-layernorm",
        "--add-qkv-bias",
        "--group-query-attention --num-query-groups 2",
    ):
        assert expected in words, expected


def on_pipeline(*words: str, **parallel: Any) -> tuple[tuple[str, Any], ...]:
    """Four layers on two pipeline stages, two micro-batches a step."""
    return (
        ("megatron.arguments", list(words)),
        ("parallel", {"tensor": 1, "pipeline": 2, **parallel}),
        ("resources.devices_per_node", 4),
        ("model.num_layers", 4),
        ("batch", {"global": 8, "micro": 2}),
    )


@pytest.mark.parametrize(
    ("parallel", "flags"),
    [
        ({"context": 2}, ["--context-parallel-size", "2"]),
        ({"first_stage_layers": 1}, ["--decoder-first-pipeline-num-layers", "1"]),
        ({"last_stage_layers": 1}, ["--decoder-last-pipeline-num-layers", "1"]),
        ({"virtual_pipeline": 2}, ["--num-virtual-stages-per-pipeline-rank", "2"]),
        (
            {"account_for_embedding": True, "account_for_loss": True},
            ["--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"],
        ),
        ({"distributed_optimizer": True}, ["--use-distributed-optimizer"]),
        ({"overlap": True}, ["--overlap-grad-reduce"]),
        (
            {"distributed_optimizer": True, "overlap": True},
            ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"],
        ),
    ],
)
def test_keys_of_the_split_are_passed_on(tmp_path: Path, parallel: dict[str, Any], flags: list[str]) -> None:
    plan = make_plan(load(megatron_recipe(tmp_path, *on_pipeline(**parallel))))
    assert plan.errors == ()
    split, spec = plan.stages[0].parallel, plan.stages[0].spec
    assert split is not None
    assert isinstance(spec, ProgramStageSpec)
    context = parallel.get("context", 1)
    assert (split.context, split.data) == (context, 2 // context)
    assert [place.context for place in plan.stages[0].ranks] == [rank % context for rank in range(4)]
    at = spec.program.argv.index(flags[0])
    given = spec.program.argv[at : at + len(flags)] if flags[-1].isdigit() else flags
    assert given == flags
    assert set(flags) <= set(spec.program.argv)
    plain = make_plan(load(megatron_recipe(tmp_path, *on_pipeline()))).stages[0].spec
    assert isinstance(plain, ProgramStageSpec)
    assert not set(flags) & {word for word in plain.program.argv if word.startswith("--")}


def test_a_mixture_of_experts_is_passed_on(tmp_path: Path) -> None:
    def plan(*changes: tuple[str, Any], **parallel: Any) -> Plan:
        experts = (("model.num_moe_experts", 4), ("model.add_bias_linear", False), *changes)
        return make_plan(load(megatron_recipe(tmp_path, *on_pipeline(**parallel), *experts)))

    def flags(found: Plan) -> dict[str, str]:
        assert found.errors == ()
        spec = found.stages[0].spec
        assert isinstance(spec, ProgramStageSpec)
        words = spec.program.argv
        return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}

    found = flags(plan(expert=2))
    assert found["--num-experts"] == "4"
    assert (found["--moe-router-topk"], found["--moe-aux-loss-coeff"]) == ("2", "0.01")
    assert found["--expert-model-parallel-size"] == "2"
    assert "--expert-tensor-parallel-size" not in found
    assert "--moe-router-pre-softmax" not in found
    one = flags(plan(("model.moe_router_topk", 1), ("model.moe_z_loss_coeff", 0.001)))
    assert "--moe-router-pre-softmax" in one
    assert one["--moe-z-loss-coeff"] == "0.001"
    assert (
        flags(plan(tensor=2, pipeline=1, sequence=True, expert=2, expert_tensor=1))["--expert-tensor-parallel-size"]
        == "1"
    )
    assert "no biases" in str(plan(("model.add_bias_linear", True)).errors)
    half = plan(("trainer.precision", "fp16"), ("resources.device", "gpu"), expert=2)
    assert half.errors == ()
    assert "refused by core_v0.14" in str(half.findings)
    assert "would send the same tokens" in str(plan(tensor=2, pipeline=1, expert=2).errors)


def test_a_layout_of_the_layers_is_left_to_megatron_lm(tmp_path: Path) -> None:
    plan = make_plan(load(megatron_recipe(tmp_path, *on_pipeline("--pipeline-model-parallel-layout", "Et|tttL"))))
    assert plan.errors == ()


@pytest.mark.parametrize(
    ("parallel", "words", "expected"),
    [
        ({"context": 3}, [], "4 devices are not a multiple of tensor 1 × pipeline 2 × context 3 = 6"),
        ({"first_stage_layers": 4}, [], "leaves 0 layers for the other 1 pipeline stages"),
        ({"first_stage_layers": 1, "last_stage_layers": 2}, [], "and last_stage_layers have 3 of 4 layers"),
        ({"virtual_pipeline": 3}, [], "3 does not divide the 2 layers of a pipeline stage"),
        ({"account_for_loss": True}, [], "makes 5 layers for pipeline 2"),
        ({"account_for_loss": True, "last_stage_layers": 1}, [], "does not go with last_stage_layers"),
        ({}, ["--context-parallel-size=3"], "is made from parallel.context; set that instead"),
        ({}, ["--num-layers-per-virtual-pipeline-stage=1"], "is made from parallel.virtual_pipeline"),
        ({}, ["--expert-model-parallel-size", "2"], "is made from parallel.expert; set that instead"),
        ({}, ["--num-experts=2"], "is made from model.num_moe_experts; set that instead"),
        ({"expert": 2}, [], "2 devices cannot share the experts of a model that has none"),
        ({"virtual_pipeline": 2}, ["--pipeline-model-parallel-layout", "Et|tttL"], "both divide the layers; keep one"),
        ({}, ["--pipeline-model-parallel-layout", "Et|ttL"], "has 3 layers (t), and model.num_layers is 4"),
        ({}, ["--pipeline-model-parallel-layout", "Et|t|tL"], "has 3 stages, not a multiple of parallel.pipeline 2"),
        ({}, ["--pipeline-model-parallel-layout=Ett|ttX"], "has 'X'; its letters are E (the embedding)"),
        ({}, ["--num-workers", "many"], "--num-workers takes a whole number, and 'many' is none"),
    ],
)
def test_splits_that_megatron_lm_refuses_are_refused(
    tmp_path: Path, parallel: dict[str, Any], words: list[str], expected: str
) -> None:
    plan = make_plan(load(megatron_recipe(tmp_path, *on_pipeline(*words, **parallel))))
    assert any(expected in str(one) for one in plan.errors), plan.errors


def test_interleaved_stages_need_whole_groups_of_micro_batches(tmp_path: Path) -> None:
    changes = on_pipeline(virtual_pipeline=2)
    plan = make_plan(load(megatron_recipe(tmp_path, *changes, ("batch", {"global": 12, "micro": 2}))))
    (found,) = plan.errors
    assert "makes 3 micro-batches, and the interleaved schedule needs a multiple of pipeline 2" in str(found)
    assert found.choices == (8, 16)


@pytest.mark.parametrize(("start", "fits"), [(8, True), (12, False)])
def test_a_growing_batch_fills_interleaved_stages_at_each_size(tmp_path: Path, start: int, fits: bool) -> None:
    batch = {"global": 16, "micro": 2, "rampup": {"start": start, "increment": 16 - start, "samples": 100}}
    plan = make_plan(
        load(
            megatron_recipe(
                tmp_path,
                *on_pipeline(virtual_pipeline=2),
                ("batch", batch),
                ("trainer", {"train_samples": 1000, "val_check_interval": 10}),
                ("optim.schedule", {"name": "cosine", "warmup_samples": 50}),
            )
        )
    )
    assert (
        not plan.errors if fits else "4 is not a multiple of micro × data parallel × pipeline = 8" in str(plan.errors)
    )
    assert any("core_v0.18" in str(one) for one in plan.findings), "newer releases do not read it"


def test_what_megatron_lm_asserts_of_the_environment_is_set(tmp_path: Path) -> None:
    def environment(*words: str, **parallel: Any) -> dict[str, str]:
        changes = (*on_pipeline(*words, **{"pipeline": 1, **parallel}), ("resources.device", "gpu"))
        spec = make_plan(load(megatron_recipe(tmp_path, *changes))).stages[0].spec
        assert isinstance(spec, ProgramStageSpec)
        return spec.program.environment

    one_queue = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert environment() == {}
    assert environment(tensor=2) == one_queue
    assert environment(context=2) == one_queue
    assert environment("--use-megatron-fsdp", tensor=2) == {}


def test_a_flag_that_no_release_has_is_told(tmp_path: Path) -> None:
    plan = make_plan(
        load(megatron_recipe(tmp_path, ("megatron.arguments", ["--recompute-activation", "--use-flash-attn"])))
    )
    (found,) = [one for one in plan.findings if one.rule == "known flags"]
    assert "--recompute-activation is no flag of Megatron-LM" in found.message
    assert "did you mean --recompute-activations?" in found.message


def test_keys_that_do_nothing_are_told(tmp_path: Path) -> None:
    changes = ("trainer.val_metrics", ["exact_match"]), ("megatron.arguments", ["--optimizer", "sgd"])
    plan = make_plan(load(megatron_recipe(tmp_path, *changes)))
    assert plan.errors == ()
    said = " ".join(map(str, plan.findings))
    assert "trainer.val_metrics: has no effect: pre-training is validated by its loss" in said
    assert "--optimizer is used in place of optim.name" in said


def test_a_flag_that_the_parser_refuses_changes_no_plan(tmp_path: Path) -> None:
    """argparse knows the names with hyphens alone."""
    plan = make_plan(load(megatron_recipe(tmp_path, *on_pipeline("--manual_gc_interval", "2"))))
    assert plan.errors == ()
    assert any("did you mean --manual-gc-interval?" in str(one) for one in plan.findings)


def test_lengths_in_samples_and_a_growing_batch(tmp_path: Path) -> None:
    changes: tuple[tuple[str, Any], ...] = (
        ("trainer", {"train_samples": 1000, "val_check_interval": 10}),
        ("batch", {"global": 16, "micro": 2, "rampup": {"start": 8, "increment": 4, "samples": 100}}),
        ("optim.schedule", {"name": "cosine", "warmup_samples": 50, "constant_samples": 200}),
    )
    plan = make_plan(load(megatron_recipe(tmp_path, *changes)))
    assert plan.errors == ()
    program = plan.stages[0].program
    assert program is not None
    words = " ".join(program.argv)
    assert "--train-iters" not in words
    assert "--train-samples 1000" in words
    assert "--rampup-batch-size 8 4 100" in words
    assert "--lr-decay-samples 800 --lr-warmup-samples 50" in words


def test_modules_to_recompute_are_values_of_one_flag(tmp_path: Path) -> None:
    changed = ("trainer.recompute", {"granularity": "selective", "modules": ["core_attn", "mlp"]})
    program = make_plan(load(megatron_recipe(tmp_path, changed))).stages[0].program
    assert program is not None
    assert "--recompute-granularity selective" in " ".join(program.argv)
    assert "--recompute-modules core_attn mlp" in " ".join(program.argv)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trainer.max_steps": 10}, "is missing, since the batch grows over 100 samples: give 117 or more"),
        ({"trainer.train_samples": 50}, "must be 117 or more"),
        ({"trainer.train_samples": 500, "optim.schedule": {"warmup_steps": 3}}, "give warmup_samples"),
        (
            {"trainer.train_samples": 500, "batch.rampup.start": 7, "batch.rampup.increment": 3},
            "7 is not a multiple of",
        ),
    ],
)
def test_what_does_not_go_with_a_growing_batch_is_said(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    batch = {"global": 16, "micro": 2, "rampup": {"start": 8, "increment": 4, "samples": 100}}
    whole = (("trainer", {"val_check_interval": 10}), ("batch", batch), ("optim.schedule", {}), *changes.items())
    plan = make_plan(load(megatron_recipe(tmp_path, *whole)))
    assert any(expected in str(one) for one in plan.errors), plan.errors


def test_a_trainer_that_cannot_read_our_checkpoints_takes_no_base(tmp_path: Path) -> None:
    stages = [{"name": "first", "task": "pretrain"}, {**PRETRAIN, "base": "first"}]
    plan = make_plan(load(megatron_recipe(tmp_path, ("stages", stages))))
    (found,) = [one for one in plan.errors if one.rule == "engine's model"]
    assert "megatron-lm cannot read hpclm's checkpoints" in found.message
