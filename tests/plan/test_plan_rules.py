"""Each rule: what it rejects, with value and choices, and that its choices pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpclm.core.findings import Finding
from hpclm.planning import Plan, make_plan
from hpclm.recipe import load
from tests.support.samples import changed, single, write, write_checkpoint

EXPERTS = {
    "model.num_moe_experts": 4, "model.add_bias_linear": False, "parallel.sequence": True, "parallel.tensor": 2,
    "stages": [{"name": "pretrain", "task": "pretrain"}],
}  # fmt: skip
# rule, wrong key, the value it breaks on, choices offered, other changes that the case needs
RULES: list[tuple[str, str, Any, tuple[Any, ...], dict[str, Any]]] = [
    ("devices % (tensor · pipeline) == 0", "resources.devices_per_node", 3, (2, 4), {}),
    ("num_attention_heads % tensor == 0", "parallel.tensor", 8, (1, 2, 4), {"resources.devices_per_node": 8}),
    ("ffn_hidden_size % tensor == 0", "parallel.tensor", 4,
     (1, 2, 5, 10), {"resources.devices_per_node": 4, "model.ffn_hidden_size": 130}),
    ("num_layers % pipeline == 0", "parallel.pipeline", 3, (1, 2, 4), {"resources.devices_per_node": 6}),
    ("num_query_groups % tensor == 0 or tensor % num_query_groups == 0", "parallel.tensor", 2, (1, 3, 6, 9),
     {"model.num_attention_heads": 6, "model.hidden_size": 96, "model.num_query_groups": 3}),
    ("2 · num_query_groups · kv_channels % tensor == 0", "parallel.tensor", 8, (1, 2, 4),
     {"resources.devices_per_node": 8, "model.num_query_groups": 1, "model.num_attention_heads": 8,
      "model.kv_channels": 2}),
    ("layers of a stage % recompute.num_layers == 0", "trainer.recompute.num_layers", 3, (1, 2, 4),
     {"trainer.recompute.granularity": "full", "trainer.recompute.method": "uniform"}),
    ("modules are in the model", "trainer.recompute.modules", ["moe", "core_attn"], (["core_attn", "mlp"],),
     {"trainer.recompute.granularity": "selective", "model.add_bias_linear": False}),
    ("modules are in the model", "trainer.recompute.modules", ["mlp"], (["moe"],),
     {**EXPERTS, "trainer.recompute.granularity": "selective"}),
    ("num_moe_experts % expert == 0", "parallel.expert", 3, (1, 2, 4),
     {**EXPERTS, "resources.devices_per_node": 12, "batch.global": 48}),
    ("devices % (expert · expert_tensor · pipeline) == 0", "parallel.expert", 4, (1,),
     {**EXPERTS, "parallel.distributed_optimizer": True}),
    ("moe_router_topk <= num_moe_experts", "model.moe_router_topk", 5, (4,), EXPERTS),
    ("ffn_hidden_size % expert_tensor == 0", "parallel.expert_tensor", 4, (1, 2, 5, 10),
     {**EXPERTS, "model.ffn_hidden_size": 130, "resources.devices_per_node": 8, "parallel.expert": 2}),
    ("experts with tensor > 1 need sequence", "parallel.sequence", False, (True,),
     {key: value for key, value in EXPERTS.items() if key != "parallel.sequence"}),
    ("experts with biases need expert_tensor 1", "parallel.expert_tensor", 2, (1,),
     {**EXPERTS, "model.add_bias_linear": True, "resources.devices_per_node": 4, "parallel.expert": 2}),
    ("expert_tensor != tensor needs expert > 1", "parallel.expert_tensor", 1, (2,), {**EXPERTS, "parallel.expert": 1}),
    ("keys of experts", "parallel.expert", 2, (1,), {}),
    ("keys of experts", "model.moe_router_topk", 2, (), {}),
    ("expert · expert_tensor == tensor · context in this order", "parallel.order", "tp-cp-ep-pp-dp",
     ("tp-cp-ep-dp-pp",),
     {**EXPERTS, "parallel.pipeline": 2, "parallel.expert": 2, "resources.devices_per_node": 8}),
    ("expert · expert_tensor == tensor · context in this order", "parallel.order", "tp-cp-ep-pp-dp",
     ("tp-cp-ep-dp-pp",),
     {"parallel.pipeline": 2, "parallel.context": 2, "resources.devices_per_node": 8,
      "stages": [{"name": "pretrain", "task": "pretrain"}]}),
    ("optimizer that can be offloaded", "optim.offload", True, (False,), {}),
    ("hidden_size % num_attention_heads == 0", "model.num_attention_heads", 6, (1, 2, 4, 8), {}),
    ("num_attention_heads % num_query_groups == 0", "model.num_query_groups", 3, (1, 2, 4), {}),
    ("global % (micro · data) == 0", "batch.global", 10, (8, 12), {}),
    ("sequence length % tensor == 0", "text.seq_length", 33, (32, 34), {"parallel.sequence": True}),
    ("sequence length % tensor == 0", "data.max_seq_length", 47, (46, 48), {"parallel.sequence": True}),
    ("sequence length <= max_position_embeddings", "text.seq_length", 65, (64,), {}),
    ("min_lr <= lr", "optim.min_lr", 0.5, (0.0,), {}),
    ("pipeline > 1 needs min_lr 0 for prompt learning", "optim.min_lr", 0.0005, (0.0,),
     {"parallel.pipeline": 2, "resources.devices_per_node": 4}),
    ("cpu needs fp32", "trainer.precision", "bf16", ("fp32",), {}),
    ("max_new_tokens < max_position_embeddings", "generation.max_new_tokens", 64, (63,), {}),
    ("max_new_tokens + virtual tokens < max_position_embeddings", "generation.max_new_tokens", 58, (57,), {}),
    ("encoder_hidden % tensor == 0", "prompt.encoder_hidden", 33, (32, 34), {}),
    ("total_virtual_tokens < max_seq_length", "data.max_seq_length", 6, (), {"generation.max_new_tokens": 1}),
]  # fmt: skip


def plan_of(folder: Path, changes: dict[str, Any], **options: Any) -> Plan:
    return make_plan(load(write(folder, changed(*changes.items()))), **options)


def of_rule(plan: Plan, rule: str) -> list[Finding]:
    return [finding for finding in plan.findings if finding.rule == rule]


@pytest.mark.parametrize(("rule", "key", "value", "choices", "others"), RULES, ids=lambda item: str(item)[:50])
def test_a_rule_fails_with_value_and_choices_and_passes_with_each_choice(
    tmp_path: Path, rule: str, key: str, value: Any, choices: tuple[Any, ...], others: dict[str, Any]
) -> None:
    found = [f for f in of_rule(plan_of(tmp_path, {key: value, **others}), rule) if f.severity == "error"]
    assert found, "the rule did not fail"
    if choices and key != "resources.devices_per_node":
        assert (found[0].value, found[0].choices) == (value, choices)
        assert found[0].where.split(" ")[-1] == key
        assert str(tmp_path / "recipe.yaml:") in found[0].where
        for choice in choices:
            assert not of_rule(plan_of(tmp_path, {key: choice, **others}), rule), choice


def test_host_memory_of_an_offloaded_optimizer_is_said(tmp_path: Path) -> None:
    how = {
        "optim.offload": True, "stages": [{"name": "pretrain", "task": "pretrain"}], "resources.device": "gpu",
        "model.hidden_size": 1024, "model.num_layers": 24, "model.num_attention_heads": 16,
    }  # fmt: skip
    plan, plain = plan_of(tmp_path, how), plan_of(tmp_path, {**how, "optim.offload": False})
    (found,) = (one for one in plan.findings if one.where.endswith("optim.offload"))
    assert (found.severity, found.rule) == ("info", "host memory")
    assert "the optimizer needs 4.5 GiB of each node's memory (pinned" in found.message
    small = plan_of(tmp_path, {**how, "resources.memory_gib": 4})
    assert any("raise resources.memory_gib" in one.message for one in small.findings if one.severity == "warning")
    memory, whole = plan.stages[0].memory, plain.stages[0].memory
    assert memory is not None
    assert whole is not None
    assert memory.optimizer == 0
    assert whole.total - memory.total == whole.optimizer > 10**9


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("sequence", "sequence needs tensor > 1"),
        ("account_for_embedding", "pipeline > 1"),
        ("account_for_loss", "pipeline > 1"),
    ],
)
def test_what_one_device_cannot_share_is_left_out_with_a_warning(tmp_path: Path, key: str, rule: str) -> None:
    """So that a sweep of `tensor` or `pipeline` may begin at 1; Megatron-LM turns them off, too."""
    plan = plan_of(tmp_path, {f"parallel.{key}": True, "parallel.tensor": 1})
    (found,) = of_rule(plan, rule)[:1]
    assert found.severity == "warning"
    assert "has no effect" in found.message
    assert plan.errors == ()
    split = plan.stages[0].parallel
    assert split is not None
    assert not any((split.sequence_parallel, split.account_for_embedding, split.account_for_loss))


def test_devices_are_offered_as_nodes_devices_and_tensor(tmp_path: Path) -> None:
    (found, *_) = plan_of(tmp_path, {"parallel.tensor": 4, "resources.devices_per_node": 6}).errors
    assert "1 × 6 = 6 devices are not a multiple of tensor 4 × pipeline 1 = 4" in found.message
    assert "devices_per_node 4 or 8, or nodes 2 or 4, or tensor 2, 3 or 6" in found.message.replace("1, 2, 3", "2, 3")
    assert found.choices == (4, 8)
    for devices in (4, 8):
        assert not of_rule(plan_of(tmp_path, {"parallel.tensor": 4, "resources.devices_per_node": devices}), found.rule)


def test_the_vocabulary_of_a_checkpoint_must_divide(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, padded_vocab_size=501, vocab_size=500)
    (found,) = make_plan(load(write(tmp_path, single()))).errors
    assert (found.rule, found.value, found.choices) == ("padded_vocab_size % tensor == 0", 2, (1, 3))


def test_tensor_groups_over_nodes_are_a_warning(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"resources.nodes": 2, "resources.devices_per_node": 1})
    (found, *_) = of_rule(plan, "tensor group within one node")
    assert found.severity == "warning"
    assert not plan.errors


def test_experts_over_nodes_are_a_warning(tmp_path: Path) -> None:
    experts = {**EXPERTS, "parallel.tensor": 1, "parallel.sequence": False, "parallel.expert": 4}
    plan = plan_of(tmp_path, {**experts, "resources.nodes": 2, "resources.devices_per_node": 2})
    (found, *_) = of_rule(plan, "expert group within one node")
    assert (found.severity, found.choices) == ("warning", (1, 2))
    assert not of_rule(plan_of(tmp_path, {**experts, "resources.devices_per_node": 4}), found.rule)


def test_evaluation_runs_on_a_multiple_of_tensor_times_pipeline(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"stages.2.resources": {"devices_per_node": 3}})
    (found,) = plan.errors
    assert "the evaluation too" in found.message
    assert found.where.endswith("stages.evaluate.resources.devices_per_node")
    plan = plan_of(tmp_path, {"stages.2.resources": {"devices_per_node": 4}})
    assert not plan.errors
    assert of_rule(plan, "evaluation devices % (tensor · pipeline) == 0")[0].severity == "info"


def test_min_lr_may_stay_where_every_weight_is_trained(tmp_path: Path) -> None:
    changes = {"parallel.pipeline": 2, "resources.devices_per_node": 4, "optim.min_lr": 0.0005}
    where = [finding.where for finding in plan_of(tmp_path, {**changes, "stages.1.optim": {"min_lr": 0}}).errors]
    assert not where


def test_a_pipeline_says_how_long_it_idles(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"parallel.pipeline": 2, "resources.devices_per_node": 4})
    # 2 micro-batches over 2 stages: 1 of 3 slots is idle.
    assert of_rule(plan, "pipeline bubble")[0].value == pytest.approx(1 / 3, abs=1e-4)


def test_a_schedule_longer_than_the_run_is_a_warning(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"optim.schedule.warmup_steps": 11})
    assert of_rule(plan, "warmup_steps + constant_steps <= steps")[0].severity == "warning"


def test_what_no_gpu_can_hold_is_refused(tmp_path: Path) -> None:
    large = {"model.num_layers": 96, "model.hidden_size": 12288, "model.num_attention_heads": 96}
    gpu = {"resources.device": "gpu", "trainer.precision": "bf16", "resources.nodes": 16, "batch.global": 128}
    (found, *_) = of_rule(plan_of(tmp_path, {**large, **gpu}), "memory estimate <= memory of a GPU")
    assert found.severity == "error"
    assert "no GPU has more than 288" in found.message
    split = {"parallel.pipeline": 8, "parallel.tensor": 8, "resources.devices_per_node": 8}
    assert not of_rule(plan_of(tmp_path, {**large, **gpu, **split}), "memory estimate <= memory of a GPU")


def test_more_pipeline_stages_than_layers_are_refused_with_recomputation(tmp_path: Path) -> None:
    recompute = {"trainer.recompute.granularity": "full", "trainer.recompute.method": "uniform"}
    changes = {"parallel.pipeline": 8, "resources.devices_per_node": 16, **recompute}
    assert of_rule(plan_of(tmp_path, changes), "num_layers % pipeline == 0")


def test_memory_of_a_node_is_compared(tmp_path: Path) -> None:
    changes = {"model.hidden_size": 4096, "model.num_layers": 16, "resources.memory_gib": 4}
    (found, *_) = of_rule(plan_of(tmp_path, changes), "memory estimate <= memory_gib")
    assert found.severity == "warning"
    least = found.choices[0]
    assert isinstance(least, int)
    assert least > 4


def test_what_nothing_reads_is_a_warning(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"stages.0.generation": {"max_new_tokens": 3}})
    (found,) = of_rule(plan, "unused section")
    assert found.where.endswith("stages.pretrain.generation")
    assert not of_rule(plan_of(tmp_path, {}), "unused section")


def test_nothing_is_read_without_files(tmp_path: Path) -> None:
    path = write(tmp_path, changed(("data.train", ["gone.jsonl"]), ("text.paths", ["gone"])))
    assert make_plan(load(path)).errors
    assert not make_plan(load(path), files=False).errors


def test_a_plan_is_the_same_each_time(tmp_path: Path) -> None:
    path = write(tmp_path, changed())
    assert make_plan(load(path)) == make_plan(load(path))


NEMO_TAKES = [
    ("truncate_field in the template", {"truncate_field": "nowhere"}),
    ("truncate_field != answer_field", {"truncate_field": "answer", "answer_only_loss": False}),
    (
        "virtual tokens stand before the answer",
        {
            "prompt_template": "<|VIRTUAL_PROMPT_0|> {words} {answer} <|VIRTUAL_PROMPT_1|>",
            "virtual_token_splits": [1, 5],
            "answer_only_loss": False,
        },
    ),
]


@pytest.mark.parametrize(("rule", "template"), NEMO_TAKES)
def test_templates_that_nemo_takes_are_taken_in_its_way(tmp_path: Path, rule: str, template: dict[str, Any]) -> None:
    changes = {f"task_templates.0.{key}": value for key, value in template.items()}
    assert of_rule(plan_of(tmp_path, changes), rule)
    assert not plan_of(tmp_path, {**changes, "data.semantics": "nemo"}).errors
