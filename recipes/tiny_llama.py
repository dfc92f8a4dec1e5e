"""What recipes/tiny_llama_alpaca.yaml runs on, made from Python's standard library, the same each time:

    python recipes/tiny_llama.py FOLDER

    FOLDER/model         a Llama of two layers with random weights, and its own byte-level BPE
    FOLDER/text.jsonl    lines of code with questions and answers, for the model to read first
    FOLDER/train.jsonl, validation.jsonl, test.jsonl    Alpaca rows: a question about a line of code each

The lines of the test rows are in no other file. Needs tokenizers, transformers and torch (hpclm[hf]).
"""

from __future__ import annotations

import ast
import hashlib
import json
import keyword
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VOCABULARY, HIDDEN, LAYERS, HEADS = 1024, 128, 2, 4
ENDS = ("<|endoftext|>", "<|pad|>")
# The prompt that the rows get, for the tokenizer; recipes name it template: stanford.
PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n\n\n### Input:\n\n\n### Response:"
)
MAX_LINE = 48
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages", "dist-packages"}
KINDS: dict[type[ast.AST], str] = {
    ast.Assign: "assignment", ast.Return: "result", ast.If: "condition", ast.For: "loop", ast.While: "loop",
    ast.Import: "import", ast.ImportFrom: "import", ast.Raise: "exception", ast.FunctionDef: "function",
    ast.ClassDef: "class", ast.With: "context", ast.Assert: "assertion", ast.Expr: "call",
}  # fmt: skip
QUESTIONS = {"kind": "What kind of statement is this?", "name": "Which name comes first in it?"}
# Of each kind, so that no answer is right most of the time.
PER_KIND = 600
ROWS = {"train": 2000, "validation": 100, "test": 200}
_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


@dataclass(frozen=True)
class Line:
    """A statement that is a line, or begins with it: `for path in paths:`."""

    text: str
    kind: str

    @property
    def name(self) -> str:
        """The first word that is no keyword."""
        return next((one for one in _NAME.findall(self.text) if not keyword.iskeyword(one)), "")

    @property
    def parts(self) -> dict[str, str]:
        return {"kind": self.kind, "name": self.name}


def lines() -> Iterator[Line]:
    """Of the library's modules, and of those in its packages."""
    library = Path(os.__file__).parent
    for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if path.parent.name in LEFT_OUT:
            continue
        source = path.read_text(encoding="utf-8")
        code = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            kind = KINDS.get(type(node))
            if kind is None or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call)):
                continue
            line = Line(code[node.lineno - 1].strip(), kind)
            if len(line.text) <= MAX_LINE and line.name and line.text.isascii() and "#" not in line.text:
                yield line


def chosen() -> dict[str, list[Line]]:
    """Each once, by the file that they are for: a tenth for validation and tests each."""
    found = sorted({one.text: one for one in lines()}.items())
    random.Random(0).shuffle(found)
    parts: dict[str, list[Line]] = {"train": [], "validation": [], "test": []}
    counts: Counter[str] = Counter()
    for text, one in found:
        counts[one.kind] += 1
        if counts[one.kind] <= PER_KIND:
            place = hashlib.sha256(text.encode()).digest()[0] % 10
            parts[{0: "test", 1: "validation"}.get(place, "train")].append(one)
    return parts


def text(some: list[Line]) -> Iterator[dict[str, str]]:
    """A line, a question about it before or after, and its answer: as the rows, in other words around them."""
    draw = random.Random(1)
    for about, question in QUESTIONS.items():
        for one in some:
            asked = [question, one.text]
            draw.shuffle(asked)
            yield {"prompt": "\n".join([*asked, ""]), "completion": one.parts[about]}


def rows(some: list[Line], count: int) -> Iterator[dict[str, str]]:
    draw = random.Random(2)
    for number in range(count):
        one = some[number % len(some)]
        about = draw.choice(list(QUESTIONS))
        yield {"instruction": QUESTIONS[about], "input": one.text, "output": one.parts[about]}


def write(path: Path, some: Iterator[dict[str, str]]) -> list[str]:
    lines = [json.dumps(one) for one in some]
    path.write_text("".join(f"{line}\n" for line in lines))
    return lines


def save_model(folder: Path, texts: list[str]) -> None:
    """Configuration, random weights and tokenizer, in transformers' format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*ENDS], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    end, pad = ENDS
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=pad)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=256,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = chosen()
    write(folder / "text.jsonl", text(parts["train"]))
    for name, count in ROWS.items():
        write(folder / f"{name}.jsonl", rows(parts[name], count))
    seen = [f"{one['prompt']}{one['completion']}" for one in text(parts["train"])]
    save_model(folder / "model", [*seen, *[PROMPT, *QUESTIONS.values()] * 1000])
    print({name: len(some) for name, some in parts.items()}, f"lines; {len(seen)} texts; {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tiny-llama"))
