"""Shipped recipes of engine hf with folders of their models' real sizes, whose weights take no room on the disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
# Of the model cards' config.json: hidden, width of the MLP, layers, key and value width, vocabulary, positions, biases
SIZES = {
    "Meta-Llama-3-8B": (4096, 14336, 32, 1024, 128256, 8192, False),
    "Meta-Llama-3-70B": (8192, 28672, 80, 1024, 128256, 8192, False),
    "Qwen2-7B-Instruct": (3584, 18944, 28, 512, 152064, 32768, True),
}
# Estimates of a rank, GiB, as docs/fine-tuning.md has them
MEMORY = {
    "llama3_8b_lora.yaml": 27,
    "llama3_70b_qlora.yaml": 53,
    "llama3_8b_full_fsdp.yaml": 13,
    "llama3_70b_lora_zero3.yaml": 28,
    "qwen2_7b_full_zero3_offload.yaml": 6,
}


def write_model(folder: Path, name: str) -> None:
    """A folder of the model's size whose weights take no room on the disk."""
    hidden, ffn, layers, narrow, vocabulary, positions, biased = SIZES[name]
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden]}
    for layer in range(layers):
        place = f"model.layers.{layer}"
        for matrix, out in (("q", hidden), ("k", narrow), ("v", narrow)):
            shapes[f"{place}.self_attn.{matrix}_proj.weight"] = [out, hidden]
            if biased:
                shapes[f"{place}.self_attn.{matrix}_proj.bias"] = [out]
        shapes[f"{place}.self_attn.o_proj.weight"] = [hidden, hidden]
        shapes[f"{place}.mlp.gate_proj.weight"] = shapes[f"{place}.mlp.up_proj.weight"] = [ffn, hidden]
        shapes[f"{place}.mlp.down_proj.weight"] = [hidden, ffn]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{place}.{norm}.weight"] = [hidden]
    shapes["model.norm.weight"] = [hidden]
    header, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    kind = "qwen2" if biased else "llama"
    config = {"model_type": kind, "architectures": ["X"], "hidden_size": hidden, "intermediate_size": ffn,
              "num_hidden_layers": layers, "num_attention_heads": hidden // 128, "vocab_size": vocabulary,
              "num_key_value_heads": narrow // 128, "max_position_embeddings": positions}  # fmt: skip
    told = {"chat_template": "{{ messages }}", "eos_token": "</s>"} if biased else {"eos_token": "</s>"}
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"</s>": 0}, "merges": []},
        "added_tokens": [{"id": 0, "content": "</s>", "special": True}],
    }
    for file, content in (("config.json", config), ("tokenizer.json", tokenizer), ("tokenizer_config.json", told)):
        (folder / file).write_text(json.dumps(content))


def shipped_recipe(folder: Path, name: str) -> Path:
    """The recipe in `folder`, beside models and rows for it."""
    for model in SIZES:
        write_model(folder / "models" / model, model)
    for data, row in (
        ("alpaca", {"instruction": "a", "output": "b"}),
        ("chats", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    ):
        (folder / "data" / data).mkdir(parents=True)
        for part in ("train", "validation", "test"):
            (folder / "data" / data / f"{part}.jsonl").write_text((json.dumps(row) + "\n") * 200)
    text = (RECIPES / name).read_text()
    for place in ("/models/", "/data/"):
        text = text.replace(f" {place}", f" {folder}{place}").replace(f"[{place}", f"[{folder}{place}")
    (folder / name).write_text(text)
    return folder / name
