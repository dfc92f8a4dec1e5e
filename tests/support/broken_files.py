"""Recipes that name broken files: rows, templates, checkpoints, tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.broken_case import Case, changed_case, recipe_case
from tests.support.samples import DROP, ROW, changed, single, write, write_checkpoint


def missing_files() -> Iterator[Case]:
    for role in ("train", "validation", "test"):
        yield changed_case(
            f"data.{role}", ["gone.jsonl"], "gone.jsonl", "does not exist", f"data.{role}", id=f"no-{role}"
        )
        yield changed_case(f"data.{role}", ["text"], "is a folder", id=f"folder-{role}")
    yield changed_case("text.paths", ["gone"], "does not exist", id="no-text")
    yield changed_case("text.pattern", "*.md", "no file in it matches", id="no-match")
    yield changed_case("tokenizer", {"tokenizer_file": "gone.json"}, "does not exist", id="no-tokenizer")
    yield recipe_case(
        "no-vocabulary",
        changed(("tokenizer", {"vocab_file": "gone.json", "merges_file": "gone.txt"})),
        "vocab_file",
        "merges_file",
        faults=2,
    )
    yield recipe_case(
        "no-prompts", changed(("stages.2.prompts", "./gone"), ("stages.2.base", "pretrain")), "does not exist"
    )
    yield recipe_case("no-checkpoint", single(), "does not exist", "model.checkpoint", faults=0)
    yield Case("no-recipe", lambda folder: folder / "gone.yaml", ("cannot be read",), faults=1)
    yield Case("recipe-folder", lambda folder: folder, ("cannot be read",), faults=1)


def checkpoint_cases() -> Iterator[Case]:
    def with_base(id: str, change: Callable[[Path], Any], *expected: str, faults: int = 1) -> Case:  # noqa: A002
        def build(folder: Path) -> Path:
            change(write_checkpoint(folder))
            return write(folder, single())

        return Case(f"checkpoint-{id}", build, expected, faults=faults)

    yield with_base("empty", lambda base: (base / "model.json").unlink(), "contains no model.json", faults=0)
    yield with_base("torn", lambda base: (base / "model.json").write_text("{"), "cannot be read as a model", faults=0)
    yield with_base("list", lambda base: (base / "model.json").write_text("[]"), "cannot be read as a model", faults=0)
    yield with_base("partial", lambda base: (base / "model.json").write_text("{}"), "cannot be read", faults=0)
    yield with_base(
        "types", lambda base: write_checkpoint(base.parent, num_layers="4"), "must be a whole number", faults=0
    )
    yield with_base("other", lambda base: write_checkpoint(base.parent, num_layers=8), "does not agree with 8")
    yield with_base("untokenized", lambda base: (base / "tokenizer.json").unlink(), "contains no tokenizer.json")
    yield with_base(
        "odd-vocabulary", lambda base: write_checkpoint(base.parent, padded_vocab_size=501), "padded_vocab_size 501"
    )

    def with_tokenizer(id: str, content: str, *expected: str) -> Case:  # noqa: A002
        def build(folder: Path) -> Path:
            (folder / "t.json").write_text(content)
            return write(folder, changed(("tokenizer", {"tokenizer_file": "t.json"})))

        return Case(f"tokenizer-{id}", build, ("tokenizer_file", *expected))

    yield with_tokenizer("torn", "{", "cannot be read as a vocabulary")
    yield with_tokenizer("list", "[]", "cannot be read as a vocabulary")
    yield with_tokenizer("empty", '{"model": {"vocab": {}}}', "no entries")
    yield with_tokenizer("text-ids", '{"model": {"vocab": {"a": "0"}}}', "not an integer")
    yield changed_case("tokenizer", {"vocab_file": "a"}, "give both", id="tokenizer-half")
    yield changed_case("tokenizer", {}, "give one of", id="tokenizer-none")
    yield changed_case(
        "tokenizer",
        {"train": {"vocab_size": 512}, "tokenizer_file": "a"},
        "give one of",
        id="tokenizer-two",
    )
    yield changed_case("model.vocab_size", 100, "less than the tokenizer's 512", id="vocabulary-small")


def row_cases() -> Iterator[Case]:
    good = json.dumps(ROW)

    def lines(id: str, line: str | bytes, *expected: str, role: str = "train", faults: int = 1) -> Case:  # noqa: A002
        raw = line if isinstance(line, bytes) else line.encode()

        def build(folder: Path) -> Path:
            path = write(folder, changed())
            body = (good.encode() + b"\n") * 8
            (folder / f"{role}.jsonl").write_bytes(body + raw + b"\n" + body)
            return path

        return Case(f"row-{role}-{id}", build, (f"{role}.jsonl:9", *expected), faults=faults)

    for role in ("train", "validation", "test"):
        yield lines("open", '{"taskname": "first"', "is not valid JSON", role=role)
        yield lines("taskname", json.dumps({**ROW, "taskname": "second"}), "has no template", role=role)
        yield lines("number", json.dumps({**ROW, "words": 5}), "words is a number", role=role)
    yield lines("text", "hello", "is not valid JSON")
    yield lines("list", "[1]", "is a list")
    yield lines("string", '"a"', "is text")
    yield lines("null", "null", "is null")
    yield lines("digits", "9" * 5000, "is not valid JSON")
    yield lines("two", good + good, "is not valid JSON")
    yield lines("deep", "[" * 100_000, "row")
    yield lines("utf-16", good.encode("utf-16"), "UTF-8")
    yield lines("latin-1", '{"taskname": "first", "words": "ä"}'.encode("latin-1"), "UTF-8")
    yield lines("no-taskname", '{"words": "a", "answer": "b"}', "has no taskname")
    yield lines("near-taskname", json.dumps({**ROW, "taskname": "frist"}), "did you mean 'first'?")
    yield lines("list-taskname", json.dumps({**ROW, "taskname": ["first"]}), "has no template")
    yield lines("null-value", json.dumps({**ROW, "words": None}), "words is null")
    yield lines("object-value", json.dumps({**ROW, "words": {}}), "words is an object")
    yield lines("number-elsewhere", json.dumps({**ROW, "id": 7}), "id is a number")
    yield lines("newline-key", json.dumps({**ROW, "a\nb": 7}), r"'a\nb' is a number")
    yield lines("no-answer", json.dumps({"taskname": "first", "words": "a"}), "has no 'answer'")

    def rows(id: str, content: str, *expected: str, role: str = "train", faults: int = 1) -> Case:  # noqa: A002
        def build(folder: Path) -> Path:
            path = write(folder, changed())
            (folder / f"{role}.jsonl").write_text(content)
            return path

        return Case(f"rows-{role}-{id}", build, expected, faults=faults)

    for role in ("train", "validation", "test"):
        yield rows("empty", "", "contain no rows", f"data.{role}", role=role)
    yield rows("blank", "\n\n \n", "contain no rows")
    yield rows("many", "x\n" * 50, "train.jsonl:1", "40 more lines", faults=11)
    yield rows(
        "field",
        (json.dumps({"taskname": "first", "word": "a", "answer": "b"}) + "\n") * 9,
        "{words} is missing from all rows",
        "did you mean {word}?",
        "prompt_template",
    )


def template_cases() -> Iterator[Case]:
    key = "task_templates.0."

    def one(id: str, changes: dict[str, Any], *expected: str, faults: int = 1) -> Case:  # noqa: A002
        recipe = changed(*((key + name, value) for name, value in changes.items()))
        return recipe_case(f"template-{id}", recipe, *expected, faults=faults)

    yield one("sum", {"virtual_token_splits": [2, 3]}, "add up to 5", faults=2)
    yield one("splits", {"virtual_token_splits": [3, 3]}, "<|VIRTUAL_PROMPT_1|>")
    yield one("no-marker", {"prompt_template": "{words} = {answer}"}, "has none")
    yield one("wrong-marker", {"prompt_template": "<|VIRTUAL_PROMPT_1|> {words} = {answer}"}, "<|VIRTUAL_PROMPT_0|>")
    yield one("misspelt", {"prompt_template": "<|VIRTUAL_PROMPT|> {words} = {answer}"}, "has none")
    yield one("twice", {"prompt_template": "<|VIRTUAL_PROMPT_0|><|VIRTUAL_PROMPT_0|> {words} = {answer}"}, "once each")
    yield one(
        "unsplit",
        {
            "prompt_template": "<|VIRTUAL_PROMPT_0|> {words} <|VIRTUAL_PROMPT_1|> {answer}",
            "virtual_token_splits": DROP,
        },
        "2 markers",
    )
    yield one("zero-split", {"virtual_token_splits": [6, 0]}, "at least 1")
    yield one("no-field", {"prompt_template": "<|VIRTUAL_PROMPT_0|> hello"}, "has no {field}")
    yield one("empty", {"prompt_template": ""}, "is empty")
    yield one(
        "empty-field", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {} {words} {answer}"}, "is not a field", faults=0
    )
    yield one(
        "absent",
        {"prompt_template": "<|VIRTUAL_PROMPT_0|> {words} {colour} = {answer}"},
        "{colour} is missing from all rows",
        faults=0,
    )
    yield one("answer-inside", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {words} = {answer}."}, "last")
    yield one("answer-space", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {words} = {answer} "}, "last")
    yield one("answer-twice", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {answer} {words} = {answer}"}, "once")
    yield one(
        "marker-behind",
        {"prompt_template": "{words} = {answer} <|VIRTUAL_PROMPT_0|>", "answer_only_loss": False},
        "marker after {answer}",
    )
    yield one("answer-field", {"answer_field": "label"}, "'label' is not a field")
    yield one("answer-null", {"answer_field": None}, "name the field")
    yield one("truncate", {"truncate_field": "context"}, "'context' is not a field", "words or null")
    yield one("truncate-answer", {"truncate_field": "answer"}, "must not be truncated")
    yield one("tokens", {"total_virtual_tokens": 48, "virtual_token_splits": [48]}, "leave no room", "less than 48")
    yield one("no-tokens", {"total_virtual_tokens": 0}, "at least 1")
    yield one("init", {"prompt_init": "text", "prompt_init_text": "x"}, "task: prompt-tuning")
    yield one("init-choice", {"prompt_init": "zeros"}, "choose random, text")
    yield recipe_case("template-init-text", single("prompt-tuning"), "does not exist", faults=0)
    second = {**changed()["task_templates"][0]}
    yield changed_case(
        "task_templates", [second, {**second}], "has a template already", id="template-same-task", faults=0
    )
    yield changed_case(
        "task_templates",
        [second, {**second, "taskname": "other", "total_virtual_tokens": 4, "virtual_token_splits": [4]}],
        "same number of virtual tokens",
        id="template-counts",
    )
    yield changed_case("task_templates", [], "task_templates", id="template-none", faults=0)
    yield changed_case("task_templates", DROP, "task_templates", id="template-missing", faults=0)
