"""Small models of transformers with tokenizers of their own, and rows of instructions to train them on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["path", "name", "self", "node", "list", "dict", "file", "mode", "type", "args", "item", "data"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ORDERS = {"copy": "Repeat the words.", "swap": "Swap the words."}


def instruction_rows(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Alpaca rows of two easy tasks; their answers differ in length."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        words = draw.sample(WORDS, draw.randint(2, 5))
        task = draw.choice(list(ORDERS))
        answer = words if task == "copy" else words[::-1]
        found.append({"instruction": ORDERS[task], "input": " ".join(words), "output": " ".join(answer)})
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_tokenizer(folder: Path, *, chat_template: str | None = CHATML) -> Any:
    """A byte-level BPE of the rows' words, with the end token of ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from hpclm.core.fine_tune_spec import InstructionData
    from hpclm.data.instructions.instruction_prompts import pieces
    from hpclm.data.instructions.instruction_records import record

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    data = InstructionData(template="stanford")
    texts = [
        "".join(one.text for one in pieces(record(row, "", data, learns=True), "stanford", ""))
        for row in instruction_rows(200)
    ]
    inner.train_from_iterator([*texts, "assistant user system"], trainer)
    made: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token=None, unk_token=None
    )
    made.chat_template = chat_template
    made.save_pretrained(folder)
    return made


def save_model(folder: Path, kind: str = "llama", *, chat_template: str | None = CHATML, **changes: Any) -> Path:
    """A model of two layers with random weights, drawn from a fixed seed, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder, chat_template=chat_template)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.05, **ends}
    modern = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}  # fmt: skip
    old = {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    shape = old if kind == "gpt2" else modern
    config = AutoConfig.for_model(kind, **{**common, **shape, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return folder


def loaded_model(folder: Path) -> Any:
    """The model of a folder, for reference. transformers' from_pretrained computes other rotary frequencies where
    torch.distributed has been started, as other tests of the same process do."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # type: ignore[no-untyped-call]
    tensors = {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    assert not unexpected
    assert set(missing) <= set(model.all_tied_weights_keys)
    return model.float().eval()
