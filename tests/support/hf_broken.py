"""Inputs of engine hf that cannot work: recipes, rows, models, DeepSpeed's configurations. Each has one fault, which
is told in one message before anything is queued."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from typing import Any

from tests.support.broken_case import Case
from tests.support.hf_broken_files import (
    CONFIG,
    ROW,
    ROWS,
    Content,
    device,
    empty_folder,
    hf_case,
    loop,
    parquet,
    pipe,
    socket_file,
)
from tests.support.hf_broken_models import ZERO, deepspeed_cases, model_cases
from tests.support.samples import DROP

_EVALUATE = {"task": "evaluate", "batch": DROP, "optim": DROP, "fine_tune": DROP, "sharding": DROP, "trainer": DROP,
             "generation": {"max_new_tokens": 4}, "instructions.test": ["test.jsonl"]}  # fmt: skip


def _sections() -> Iterator[Case]:
    for section, key in (("instructions", "trian"), ("fine_tune", "methods"), ("sharding", "strategie"),
                         ("huggingface", "attn"), ("fine_tune.lora", "r"), ("instructions", "cutoff_len")):  # fmt: skip
        yield hf_case(f"unknown-{section}.{key}", {f"{section}.{key}": 1}, key, "unknown key")
    for key, wrong in (
        ("instructions", DROP), ("instructions.train", []), ("instructions.train", "train.jsonl"),
        ("instructions.train", [1]), ("instructions.template", "alpaca"), ("instructions.format", "sharegpt"),
        ("instructions.learn", "nothing"), ("instructions.max_seq_length", 1), ("instructions.max_seq_length", 10**30),
        ("instructions.max_seq_length", "64"), ("instructions.max_seq_length", 64.5), ("instructions.too_long", "drop"),
        ("instructions.packing", "yes"), ("instructions.columns", ["output"]), ("instructions.columns", {"output": 1}),
        ("instructions.roles", "human"), ("instructions.cache", "a\nb"), ("instructions.train", ["a\0b"]),
        ("fine_tune.method", "qlora"), ("fine_tune.method", None), ("fine_tune.lora.rank", 0),
        ("fine_tune.lora.rank", 10**9), ("fine_tune.lora.alpha", 0), ("fine_tune.lora.alpha", float("nan")),
        ("fine_tune.lora.alpha", float("inf")), ("fine_tune.lora.dropout", 1.0), ("fine_tune.lora.targets", "q_proj"),
        ("fine_tune.lora.targets", [["q_proj"]]), ("fine_tune.lora.targets", ["q\nproj"]),
        ("fine_tune.virtual_tokens.count", 0),
        ("sharding.strategy", "zero4"), ("sharding.offload", True), ("sharding.group_size", 0),
        ("sharding.group_size", -1), ("sharding.nvme", 5), ("huggingface.attention", "flash"),
        ("huggingface.remote_code", "yes"), ("model.checkpoint", 7), ("optim.name", "adamx"),
    ):  # fmt: skip
        yield hf_case(f"{key}={'none' if wrong is DROP else repr(wrong)[:20]}", {key: wrong}, key.rpartition(".")[2])


def _rules() -> Iterator[Case]:
    yield hf_case("tensor", {"parallel": {"tensor": 2}}, "parallel.tensor", "sharding.strategy", "choose 1")
    yield hf_case("pipeline", {"parallel": {"pipeline": 2}}, "parallel.pipeline", "choose 1")
    yield hf_case("fp16-cpu", {"trainer.precision": "fp16"}, "trainer.precision", "fp32 or bf16")
    yield hf_case("tf32-cpu", {"trainer.precision": "tf32"}, "trainer.precision", "fp32 or bf16")
    yield hf_case(
        "recompute",
        {"trainer.recompute": {"granularity": "full", "method": "uniform"}},
        "recompute",
        "sharding.checkpointing",
    )
    yield hf_case("samples", {"trainer.train_samples": 5, "trainer.max_steps": DROP}, "train_samples", "max_steps")
    yield hf_case("metrics", {"trainer.val_metrics": ["accuracy"]}, "val_metrics", "evaluate")
    yield hf_case("tokenizer", {"tokenizer": {"train": {"vocab_size": 500}}}, "tokenizer", "leave it out")
    yield hf_case("offload-ddp", {"sharding.offload": "all"}, "sharding.offload", "choose none")
    yield hf_case("offload-zero2", {**ZERO, "sharding.offload": "all"}, "sharding.offload", "choose none or optimizer")
    yield hf_case("nvme", {**ZERO, "sharding.nvme": "/scratch"}, "sharding.nvme", "zero3")
    yield hf_case("group", {"sharding.group_size": 2}, "sharding.group_size", "fsdp")
    yield hf_case("group-3", {"sharding": {"strategy": "fsdp", "group_size": 3}}, "sharding.group_size", "choose 2")
    yield hf_case("adamw-8bit", {"optim.name": "adamw-8bit"}, "optim.name", "choose adamw")
    nf4 = {"huggingface.quantization": "nf4"}
    yield hf_case("nf4-full", {**nf4, "fine_tune": {"method": "full"}}, "huggingface.quantization", "none or lora")
    yield hf_case("nf4-zero3", {**nf4, "sharding.strategy": "zero3"}, "huggingface.quantization", "ddp or fsdp")
    yield hf_case("nf4-saved", {**nf4, "fine_tune.lora": {"modules_to_save": ["q_proj"]}}, "modules_to_save", "4 bits")
    yield hf_case("lora-of-full", {"fine_tune": {"method": "full", "lora": {"rank": 4}}}, "fine_tune.lora", "lora")
    yield hf_case("virtual", {"fine_tune.virtual_tokens": {"count": 4}}, "virtual_tokens", "p-tuning")
    yield hf_case("p-zero", {"fine_tune.method": "p-tuning", "sharding.strategy": "zero1"}, "strategy", "ddp or fsdp")
    yield hf_case("batch", {"batch.global": 7}, "batch", "choose")
    yield hf_case("stopping", {"instructions.validation": DROP, "trainer.early_stopping": {"patience": 1}},
                  "early_stopping", "instructions.validation")  # fmt: skip
    yield hf_case("no-model", {"model": DROP}, "model.checkpoint", "transformers' format")
    yield hf_case("no-test", {**_EVALUATE, "instructions.test": []}, "instructions.test", "add it")
    yield hf_case("template-twice", {"instructions.template": "stanford", "instructions.chat_template": "t.jinja"},
                  "chat_template", "leave one out", files={"t.jinja": "x"})  # fmt: skip
    yield hf_case("roles-twice", {"instructions.roles": {"user": "human", "assistant": "human"}}, "roles")
    yield hf_case("row-text", {"instructions.row_text": "{a} and more"}, "row_text", "end with the answer's field")
    yield hf_case("row-text-columns", {"instructions.row_text": "{a} {b}", "instructions.format": "alpaca"},
                  "row_text", "leave columns and format out")  # fmt: skip
    yield hf_case("role-unknown", {"instructions.roles": {"usr": "human"}}, "instructions.roles", "user")
    yield hf_case("column-unknown", {"instructions.columns": {"instructon": "q"}}, "columns", "instruction")
    yield hf_case("columns-same", {"instructions.columns": {"input": "q", "output": "q"}}, "columns", "twice")
    yield hf_case("data-of-megatron", {"data": {"train": ["train.jsonl"]}}, "data", "instructions")
    yield hf_case("packing-virtual", {"fine_tune.method": "p-tuning", "fine_tune.virtual_tokens": {"count": 100}},
                  "virtual_tokens.count", "positions")  # fmt: skip


def _rows() -> Iterator[Case]:
    def rows(
        id: str,  # noqa: A002
        content: Content,
        *expected: str,
        changes: dict[str, Any] | None = None,
        name: str = "train.jsonl",
        faults: int = 1,
    ) -> Case:
        made = {**(changes or {}), "instructions.train": [name]}
        return hf_case(f"rows-{id}", made, *expected, files={name: content}, faults=faults)

    def row(id: str, wrong: Any, *expected: str, **changes: Any) -> Case:  # noqa: A002
        text = wrong if isinstance(wrong, str) else json.dumps(wrong)
        return rows(id, ROWS + text + "\n", "train.jsonl:17", *expected, changes=changes.get("changes"))

    yield rows("none", None, "instructions.train", "does not exist")
    yield rows("empty", "", "instructions.train", "contains no rows; add rows")
    yield rows("blank", "\n \n\n", "instructions.train", "contains no rows; add rows")
    yield rows("empty-list", "[]", "instructions.train", "contains no rows; add rows", name="a.json")
    yield rows("pipe", pipe, "instructions.train", "is a pipe, not a file")
    yield rows("device", device, "instructions.train", "is a device, not a file")
    yield rows("socket", socket_file, "instructions.train", "cannot be read")
    yield rows("folder", empty_folder, "instructions.train", "is a folder, not a file", name="rows-folder")
    yield rows("loop", loop, "instructions.train", "train.jsonl")
    yield hf_case("rows-long-name", {"instructions.train": ["x" * 300]}, "instructions.train", "File name too long")
    yield rows("deep-list", "[" * 10**6, "instructions.train", "not valid JSON", name="a.json")
    yield rows("deep-row", '{"instruction": ' + "[" * 10**6, "train.jsonl:1", "not valid JSON")
    yield rows("torn-list", '[{"instruction": "a", "output": "b"},', "not valid JSON", name="a.json")
    yield rows("list-of-text", '["a"]', "a.json row 1", "is not an object", name="a.json")
    yield rows("utf-16", ROWS.encode("utf-16"), "instructions.train", "UTF-8", "convert")
    yield rows("latin", '{"instruction": "é", "output": "x"}\n'.encode("latin-1"), "UTF-8", "convert")
    yield rows("binary", bytes(range(256)) * 10, "train.jsonl:1")
    yield rows("not-gzip", b"text", "instructions.train", "cannot be read", name="a.jsonl.gz")
    yield rows("torn-gzip", gzip.compress(os.urandom(5000))[:3000], "instructions.train", name="a.jsonl.gz")
    broken = bytearray(gzip.compress(os.urandom(9000).hex().encode()))
    broken[2000:2060] = bytes(60)
    yield rows("damaged-gzip", bytes(broken), "instructions.train", "cannot be read", name="a.jsonl.gz")
    yield rows("not-parquet", ROWS, "instructions.train", "not a parquet file", name="a.parquet")
    yield rows("torn-parquet", b"PAR1" + bytes(100) + b"PAR1", "instructions.train", name="a.parquet")
    yield rows("parquet-pipe", pipe, "instructions.train", "is a pipe", name="a.parquet")
    yield row("no-json", "not json", "not valid JSON")
    yield row("list", [1], "is not an object")
    yield row("number", "5", "is not an object")
    yield row("huge-number", '{"instruction": "a", "output": ' + "9" * 10_000 + "}", "not valid JSON")
    yield row("unknown", {"question": "a", "answer": "b"}, "none of the keys", "instructions.columns")
    yield row("near", {"instructions": "a", "output": "b"}, "may be instruction")
    yield row("no-answer", {"instruction": "a"}, "has no answer to learn; add it, or remove the row")
    yield row("empty-answer", {"instruction": "a", "output": ""}, "has no answer to learn")
    yield row("blank-answer", {"instruction": "a", "output": " \n"}, "has no answer to learn")
    yield row("answer-null", {"instruction": "a", "output": None}, "has no answer to learn")
    yield row("answer-number", {"instruction": "a", "output": 5}, "output is a number; write it as text in quotes")
    yield row("answer-nan", '{"instruction": "a", "output": NaN}', "output is a number")
    yield row("answer-list", {"instruction": "a", "output": ["b"]}, "output is a list")
    yield row("surrogate", '{"instruction": "a", "output": "\\ud800"}', "surrogate", "correct")
    yield row("history", {**ROW, "history": [["a"]]}, "history", "pairs")
    yield row("history-text", {**ROW, "history": "a"}, "history is text; write a list of pairs")
    yield row("messages-text", {"messages": "a"}, "messages are text")
    yield row("messages-none", {"messages": []}, "has no messages; add them, or remove the row")
    yield row("message-text", {"messages": ["a"]}, "message 1 is text; write an object")
    yield row("role", {"messages": [{"role": "robot", "content": "a"}]}, "message 1", "'robot'", "instructions.roles")
    yield row("role-list", {"messages": [{"role": ["user"], "content": "a"}]}, "message 1 has the role")
    yield row("content", {"messages": [{"role": "user"}]}, "message 1 has no content", "add it")
    yield row(
        "parts", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 1 has a part that is no text"
    )
    yield row("only-answer", {"messages": [{"role": "assistant", "content": "a"}]}, "add what it answers")
    yield row("only-question", {"messages": [{"role": "user", "content": "a"}]}, "has no answer to learn")
    turns = [{"from": one, "value": "a"} for one in ("human", "gpt", "human", "gpt")]
    yield row("turns", {"conversations": turns}, "several turns", "choose template: chat",
              changes={"instructions.template": "stanford"})  # fmt: skip
    tool = [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]
    yield row("tool", {"messages": tool}, "choose chat", changes={"instructions.template": "llama-factory"})
    plain = {"instructions.template": "plain", "instructions.validation": DROP}
    yield rows("plain-input", json.dumps(ROW) + "\n", "train.jsonl:1", "has an input", "choose", changes=plain)
    yield row("newline-key", {"a\nb": 1}, "none of the keys")
    yield row("pair", {"prompt": "a", "completion": {"x": 1}}, "completion is an object")
    form = {"instructions.format": "messages", "instructions.validation": DROP}
    yield rows("format", json.dumps(ROW) + "\n", "train.jsonl:1", "has no 'messages'", changes=form)
    yield rows("many", "x\n" * 50, "train.jsonl:1")
    same = json.dumps({"question": "a", "answer": "b"}) + "\n"
    yield rows("alike", same * 50, "train.jsonl:1: has none of the keys", "(49 more rows alike)")
    yield rows("two-alike", ROWS + same * 2, "train.jsonl:17: has none of the keys", "(1 more row alike)")
    different = "".join(json.dumps({**ROW, "output": None, "history": number, "system": number}) + "\n"
                        for number in range(3))  # fmt: skip
    yield rows("different", different, "train.jsonl:1: system is a number")
    for id, of, said in (  # noqa: A001
        ("number", 0.5, "output is a number"), ("bytes", b"\xff", "output is not text"),
        ("list", [["a", "b"]], "output is a list"), ("none", None, "has no answer to learn"),
        ("far", 2**60, "cannot be read"),
    ):  # fmt: skip
        where = "instructions.train" if id == "far" else "a.parquet row 1"
        yield rows(f"parquet-{id}", parquet(of), where, said, name="a.parquet")


def _evaluations() -> Iterator[Case]:
    yield hf_case("evaluate-positions", {**_EVALUATE, "generation": {"max_new_tokens": 100}}, "max_new_tokens",
                  "positions")  # fmt: skip
    yield hf_case("evaluate-prompts", {**_EVALUATE, "prompts": "x"}, "prompts")
    yield hf_case("evaluate-base", {**_EVALUATE, "base": "gone", "model": DROP}, "base")
    yield hf_case("evaluate-rows", _EVALUATE, "test.jsonl:1", "nothing but an answer",
                  files={"test.jsonl": '{"messages": [{"role": "assistant", "content": "a"}]}\n'})  # fmt: skip


def _of_two_stages() -> Iterator[Case]:
    """A fault that two stages share is told once."""
    stages = [{"name": "tune", "task": "fine-tune", "engine": "hf"},
              {"name": "ask", "task": "evaluate", "engine": "hf", "base": "tune"}]  # fmt: skip
    both = {
        "stages": stages,
        "task": DROP,
        "engine": DROP,
        "instructions.test": ["test.jsonl"],
        "generation": {"max_new_tokens": 4},
    }

    def two(
        id: str,  # noqa: A002
        changes: dict[str, Any],
        *expected: str,
        files: dict[str, Content] | None = None,
    ) -> Case:
        return hf_case(f"two-{id}", {**both, **changes}, *expected, files=files)

    checkpoint = "model.checkpoint"
    length = {"instructions.max_seq_length": 129}
    yield two("config", {}, checkpoint, "config.json", files={"model/config.json": "[]"})
    yield two("weights", {}, checkpoint, "has neither", files={"model/model.safetensors": None})
    yield two("gone", {checkpoint: "gone"}, checkpoint, "does not exist")
    yield two("positions", length, "max_seq_length", "128")
    yield two("no-tokenizer", {}, checkpoint, "tokenizer.json", files={"model/tokenizer.json": None})
    ended: dict[str, Content] = {"model/tokenizer_config.json": {"eos_token": "<|im_end|>"}}
    yield two("no-chat", {}, "instructions.template", files=ended)
    yield two("chat-template", {"instructions.chat_template": "gone"}, "chat_template", "Jinja file")
    yield two("columns", {"instructions.columns": {"imput": "a"}}, "columns", "did you mean")
    yield two("remote", {}, "remote_code", files={"model/config.json": {**CONFIG, "auto_map": {"AutoConfig": "a.B"}}})
    yield two("targets", {"fine_tune.lora.targets": ["zebra"]}, "targets")
    yield two("quantised", {}, "quantised", files={"model/config.json": {**CONFIG, "quantization_config": {}}})
    yield two("no-model", {"model": DROP}, checkpoint)
    yield two("base", {"stages.1.base": "tuen"}, "base", "did you mean tune?")
    yield two("base-self", {"stages.1.base": "ask"}, "base")
    inner = {"model": DROP, "stages": [{**stages[0], "model": {"checkpoint": "model"}}, stages[1]]}
    for file in ("tokenizer.json", "config.json"):
        yield two(f"inner-{file}", inner, "stages.tune.model.checkpoint", file, files={f"model/{file}": None})


HF_CASES: list[Case] = [
    *_sections(),
    *_rules(),
    *_rows(),
    *model_cases(),
    *deepspeed_cases(),
    *_evaluations(),
    *_of_two_stages(),
]
