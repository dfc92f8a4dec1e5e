"""Models and DeepSpeed configurations that engine hf cannot work with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.broken_case import Case
from tests.support.hf_broken_files import (
    CONFIG,
    SHAPES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Content,
    empty_folder,
    framed,
    hf_case,
    loop,
    pipe,
    safetensors,
)

ZERO = {"sharding.strategy": "zero2", "fine_tune.method": "full"}
JSON = {"sharding.deepspeed": "ds.json"}


def model_cases() -> Iterator[Case]:
    def model(id: str, name: str, content: Content, *expected: str, **changes: Any) -> Case:  # noqa: A002
        return hf_case(f"model-{id}", changes, *expected, files={f"model/{name}": content})

    checkpoint = "model.checkpoint"
    yield hf_case("model-none", {checkpoint: "gone"}, checkpoint, "does not exist; give a folder")
    yield hf_case("model-hub-name", {checkpoint: "meta-llama/Llama-3.1-8B"}, checkpoint,
                  "hpclm model fetch meta-llama/Llama-3.1-8B")  # fmt: skip
    yield hf_case("model-file", {checkpoint: "train.jsonl"}, checkpoint, "give a folder")
    yield hf_case("model-pipe", {checkpoint: "pipe"}, checkpoint, "give a folder", files={"pipe": pipe})
    yield hf_case("model-loop", {checkpoint: "loop"}, checkpoint, files={"loop": loop})
    yield hf_case("model-long-name", {checkpoint: "x" * 300}, checkpoint)
    yield hf_case("model-empty", {checkpoint: "empty"}, checkpoint, "config.json", "missing",
                  files={"empty": empty_folder})  # fmt: skip
    for name, content, said in (
        ("none", None, "is missing"), ("empty", "", "cannot be read"), ("list", "[]", "not a JSON object"),
        ("text", '"llama"', "not a JSON object"), ("torn", '{"model_type": "lla', "cannot be read"),
        ("deep", '{"a":' * 10**6, "cannot be read"), ("binary", bytes(range(256)), "cannot be read"),
        ("pipe", pipe, "is a pipe"), ("folder", empty_folder, "is a folder"), ("loop", loop, "cannot be read"),
        ("huge", '{"hidden_size": ' + "9" * 10_000 + "}", "cannot be read"),
    ):  # fmt: skip
        yield model(f"config-{name}", "config.json", content, checkpoint, "config.json", said)
    for name, content, said in (
        ("none", None, "has neither"), ("empty", b"", "not a safetensors file"), ("text", "weights", "not a"),
        ("pipe", pipe, "has neither"), ("header-size", b"\xff" * 8, "too large"),
        ("header-torn", safetensors()[:100], "not a safetensors file"),
        ("header-list", framed(b"[]"), "not a safetensors file"),
        ("header-none", framed(b"{}"), "no tensor"),
        ("header-deep", framed(b'{"a":' * 10**6), "not a safetensors file"),
        ("header-nan", framed(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'), "not a"),
        ("shape-huge", framed(b'{"a.weight": {"dtype": "F32", "shape": [' + b"9" * 400 + b", 2]}}"), "bytes"),
        ("shape-negative", framed(b'{"a.weight": {"dtype": "F32", "shape": [-4, 2], "data_offsets": [0, 4]}}'), "a"),
        ("torn", safetensors()[:-50], "bytes"),
        ("lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    ):  # fmt: skip
        yield model(f"weights-{name}", "model.safetensors", content, checkpoint, said)
    yield hf_case("model-pickle", {}, checkpoint, "pickle", "safe_serialization",
                  files={"model/model.safetensors": None, "model/pytorch_model.bin": b"x"})  # fmt: skip
    index = "model/model.safetensors.index.json"
    none: dict[str, Content] = {"model/model.safetensors": None}
    yield hf_case("index-missing-file", {}, checkpoint, "model-2.safetensors", "copy the model again",
                  files={**none, index: {"weight_map": {"a": "model-2.safetensors"}}})  # fmt: skip
    yield hf_case("index-list", {}, checkpoint, "names no file", files={**none, index: []})
    yield hf_case("index-outside", {}, checkpoint, "not in the folder",
                  files={**none, index: {"weight_map": {"a": "../../etc/passwd"}}})  # fmt: skip
    for name in ("a\nb", "x" * 300, "\0", "..", "/etc/passwd", ""):
        yield hf_case(f"index-name-{name!r:.8}", {}, checkpoint, "not in the folder",
                      files={**none, index: {"weight_map": {"a": name}}})  # fmt: skip
    yield hf_case("index-deep", {}, checkpoint, "names no file", files={**none, index: '{"a":' * 10**6})
    gptq = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
    zero3 = {"fine_tune.method": "full", "sharding.strategy": "zero3"}
    yield model("quantised", "config.json", gptq, checkpoint, "quantised (gptq)", "made from", **zero3)
    yield model("remote", "config.json", {**CONFIG, "auto_map": {"AutoConfig": "a.B"}}, "remote_code", "read them")
    yield model("no-tokenizer", "tokenizer.json", None, checkpoint, "tokenizer.json", "AutoTokenizer")
    yield model("tokenizer-text", "tokenizer.json", "tokens", checkpoint, "tokenizer.json", "copy")
    yield model("tokenizer-empty", "tokenizer.json", "", checkpoint, "tokenizer.json", "copy")
    yield model("tokenizer-list", "tokenizer.json", [], checkpoint, "tokenizer.json", "copy")
    yield model("tokenizer-pipe", "tokenizer.json", pipe, checkpoint, "tokenizer.json")
    yield model("tokenizer-deep", "tokenizer.json", "[" * 10**6, checkpoint, "tokenizer.json", "copy")
    yield model("tokenizer-lfs", "tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "tokenizer.json")
    yield model("tokenizer-large", "tokenizer.json",
                {**TOKENIZER, "model": {"type": "BPE", "vocab": {"a": 0, "b": 320}, "merges": []}},
                checkpoint, "320", "vocab_size")  # fmt: skip
    without = {key: value for key, value in TOKENIZER_CONFIG.items() if key != "chat_template"}
    yield model("no-chat-template", "tokenizer_config.json", without, "instructions.template", "choose stanford")
    ended = {key: value for key, value in TOKENIZER_CONFIG.items() if key != "eos_token"}
    yield model("no-end", "tokenizer_config.json", ended, checkpoint, "end token", "eos_token")
    yield model("tokenizer-config", "tokenizer_config.json", "{", checkpoint, "tokenizer_config.json", "copy")
    yield model(
        "unknown-kind", "config.json", {**CONFIG, "model_type": "zebra"}, "fine_tune.lora.targets", "all-linear"
    )
    yield hf_case("positions", {"instructions.max_seq_length": 129}, "max_seq_length", "choose 128 or less")
    yield hf_case("template-gone", {"instructions.chat_template": "gone.jinja"}, "chat_template", "Jinja file")
    yield hf_case("template-folder", {"instructions.chat_template": "model"}, "chat_template", "Jinja file")
    yield hf_case("template-empty", {"instructions.chat_template": "t"}, "chat_template", files={"t": " \n"})
    yield hf_case("template-binary", {"instructions.chat_template": "t"}, "chat_template", files={"t": b"\xff\xfe"})
    yield hf_case("template-pipe", {"instructions.chat_template": "t"}, "chat_template", files={"t": pipe})
    yield hf_case("template-syntax", {"instructions.chat_template": "t"}, "chat_template", "line 1",
                  files={"t": "{% for message in messages %}"})  # fmt: skip
    yield hf_case("targets", {"fine_tune.lora.targets": ["q_prj"]}, "lora.targets", "did you mean q_proj?")
    yield hf_case("targets-none", {"fine_tune.lora.targets": ["zebra"]}, "lora.targets", "there are down_proj")
    yield hf_case("targets-all", {"fine_tune.lora.targets": ["all-linear", "q_proj"]}, "lora.targets", "alone")
    experts = safetensors(
        {**SHAPES, **{f"model.layers.0.block_sparse_moe.experts.0.{one}": (8, 8) for one in ("w1", "w3")}}
    )
    yield hf_case("targets-experts", {"fine_tune.lora.targets": ["w1"]}, "lora.targets", "is one tensor with w3",
                  files={"model/model.safetensors": experts})  # fmt: skip
    yield hf_case(
        "flash-cpu", {"huggingface.attention": "flash_attention_2"}, "huggingface.attention", "no CPU kernels"
    )
    yield hf_case("saved", {"fine_tune.lora.modules_to_save": ["lm_hed"]}, "modules_to_save", "did you mean lm_head?")
    yield hf_case("cache-file", {"instructions.cache": "train.jsonl"}, "instructions.cache", "folder")
    yield hf_case("shapes-none", {}, checkpoint, "config.json",
                  files={"model/model.safetensors": safetensors({"x": SHAPES["lm_head"]}),
                         "model/config.json": []})  # fmt: skip


def deepspeed_cases() -> Iterator[Case]:
    def ds(id: str, content: Content, *expected: str, **changes: Any) -> Case:  # noqa: A002
        made = {**ZERO, **JSON, **changes}
        return hf_case(f"ds-{id}", made, "sharding.deepspeed", *expected, files={"ds.json": content})

    yield ds("none", None, "ds.json", "cannot be read")
    yield ds("pipe", pipe, "is a pipe")
    yield ds("text", "zero", "not valid JSON")
    yield ds("list", [], "not a JSON object")
    yield ds("deep", '{"a":' * 10**5, "nested")
    yield ds("deep-200", '{"a":' * 400 + "1" + "}" * 400, "nested")
    yield ds("large", '{"a": "' + "x" * (2 << 20) + '"}', "too large")
    yield ds("number", '{"train_batch_size": ' + "9" * 10_000 + "}", "JSON")
    yield ds("nan", '{"gradient_clipping": NaN}', "gradient_clipping", "write auto")
    yield ds("nan-bucket", '{"zero_optimization": {"reduce_bucket_size": NaN}}', "reduce_bucket_size")
    yield hf_case("ds-ddp", {**JSON}, "sharding.deepspeed", "zero1, zero2", files={"ds.json": {}})
    for key, value in (
        ("train_batch_size", 9), ("train_micro_batch_size_per_gpu", 1), ("gradient_accumulation_steps", 7),
        ("gradient_clipping", 5.5), ("train_batch_size", "8"), ("train_batch_size", None),
    ):  # fmt: skip
        yield ds(f"{key}-{value}", {key: value}, key, "the recipe says", "write auto")
    for key, inner in (
        ("bf16", {"enabled": True}), ("fp16", {"enabled": True}), ("zero_optimization", {"stage": 3}),
        ("zero_optimization", {"stage": "2"}),
    ):  # fmt: skip
        yield ds(f"{key}-{json.dumps(inner)}", {key: inner}, key, "the recipe says", "write auto")
    yield ds("bf16-flag", {"bf16": True}, "bf16", "must be an object")
    yield ds("zero-list", {"zero_optimization": []}, "zero_optimization", "must be an object")
    for key in (
        "optimizer",
        "scheduler",
        "wandb",
        "tensorboard",
        "elasticity",
        "autotuning",
        "activation_checkpointing",
    ):
        yield ds(key, {key: {"enabled": True, "type": "AdamW"}}, key, "leave")
    yield ds("offload", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer",
             "sharding.offload")  # fmt: skip
    yield ds("offload-param", {"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param",
             "sharding.offload")  # fmt: skip
    yield ds("offload-old", {"zero_optimization": {"cpu_offload": True}}, "cpu_offload", "sharding.offload")
    yield ds("auto", {"zero_optimization": {"sub_group_size": "auto"}}, "sub_group_size", "write a value")
    yield ds("zenflow", {"zero_optimization": {"zenflow": 1}}, "zenflow", "write an object")
    yield ds("shown", {"gradient_clipping": "x" * 10**5}, "gradient_clipping", "write auto")
    yield ds("line", {"gradient\nclipping": 1.0}, "clipping")
    yield ds("unknown-zero", {"zero_optimization": {"reduce_bucket": 1}}, "reduce_bucket", "reduce_bucket_size")
    yield ds("unknown", {"gradient_cliping": 1.0}, "gradient_cliping", "gradient_clipping")
    yield ds("bucket-text", {"zero_optimization": {"reduce_bucket_size": "5e8"}}, "reduce_bucket_size", "number")
    yield ds("bucket-negative", {"zero_optimization": {"reduce_bucket_size": -1}}, "reduce_bucket_size", "number")
    yield ds("bucket-huge", {"zero_optimization": {"reduce_bucket_size": 10**400}}, "reduce_bucket_size", "number")
    yield ds("overlap-text", {"zero_optimization": {"overlap_comm": "yes"}}, "overlap_comm", "true or false")
    yield ds("amp", {"amp": {"enabled": True}}, "amp", "trainer.precision")
    misspelt = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memry": True}}}
    yield ds("offload-unknown", misspelt, "pin_memory", **{"sharding.offload": "optimizer"})
    yield ds("nvme-path", {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/b"}}},
             "nvme_path", "the recipe says",
             **{"sharding.strategy": "zero3", "sharding.offload": "optimizer", "sharding.nvme": "/a"})  # fmt: skip
    for key, removed in (
        ("progressive_layer_drop", {"enabled": True}), ("sparse_gradients", True), ("nebula", {"enabled": True}),
        ("eigenvalue", {"enabled": True}), ("quantize_training", {"enabled": True}),
    ):  # fmt: skip
        yield ds(key, {key: removed}, key, "was removed from DeepSpeed")
    yield ds("mics", {"zero_optimization": {"mics_shard_size": 2}}, "mics_shard_size", "was removed from DeepSpeed")
    yield ds("prescale", {"prescale_gradients": True}, "prescale_gradients", "leave it out")
    yield ds("predivide", {"gradient_predivide_factor": 2.0}, "gradient_predivide_factor", "leave it out")
    yield ds(
        "hpz",
        {"zero_optimization": {"zero_hpz_partition_size": 2}},
        "zero_hpz_partition_size",
        "group_size",
        **{"sharding.strategy": "zero3"},
    )
    both = {f"stage3_gather_{kind}_weights_on_model_save": True for kind in ("16bit", "fp16")}
    yield ds("two-names", {"zero_optimization": both}, "is the old name of")
