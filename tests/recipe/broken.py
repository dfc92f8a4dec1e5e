"""Recipes that a person could have written and that cannot run: each must be refused in one message.

`CASES` is shared: the recipe's own tests ask for the message's place and mend, the launch tests that nothing is
submitted. A case writes its recipe and files into a folder and says what the message must hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samples import DROP, ROW, changed, dump, single, write, write_checkpoint

from hpclm.recipe.mending import section_of
from hpclm.recipe.schema.stage import SECTIONS, Stage


@dataclass(frozen=True)
class Case:
    """One broken recipe.

    Attributes:
        build: writes the recipe and its files into a folder and returns the recipe's path.
        expected: what the message must hold.
        overrides: `--set` arguments.
        faults: how many lines the message has.
    """

    id: str
    build: Callable[[Path], Path]
    expected: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    faults: int = 1


def _recipe(id: str, recipe: dict[str, Any] | str | bytes, *expected: str, faults: int = 1) -> Case:  # noqa: A002
    return Case(id, lambda folder: write(folder, recipe), expected, faults=faults)


def _changed(key: str, value: Any, *expected: str, id: str = "", faults: int = 1) -> Case:  # noqa: A002
    return _recipe(id or f"{key}={value!r}"[:60], changed((key, value)), *expected, faults=faults)


def _leaves(model: Any = Stage, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema that is no section, dotted, with a value of a wrong type for it."""
    for name, info in model.model_fields.items():
        key = info.alias or name
        if not prefix and key not in SECTIONS:
            continue
        inner = section_of(info.annotation)
        here = f"{prefix}{key}"
        if inner is None:
            yield here, ["x"] if key == "environment" else {"x": 1}
        elif key in ("task_templates", "mounts"):
            yield from _leaves(inner, f"{here}.0.")
        else:
            yield from _leaves(inner, f"{here}.")


def _wrong_types() -> Iterator[Case]:
    for key, wrong in _leaves():
        yield _recipe(f"type-{key}", changed((key, wrong)), key.split(".")[-1], "must be")
    for section in sorted(SECTIONS):
        yield _changed(section, "text", section, "must be", id=f"type-section-{section}")
    for key, value in (("optim.lr", "0.1"), ("trainer.max_steps", "ten"), ("trainer.max_steps", 1.5)):
        yield _changed(key, value, key, "number")
    yield _changed("parallel.sequence", "yes", "true or false", "write true", id="bool-yes")
    yield _changed("name", 5, "name", "quotes", id="name-number")
    yield _changed("version", "1", "version", "write 'version: 1'", id="version-text")
    yield _changed("version", 2, "version 1", id="version-2")
    yield _changed("version", True, "version 1", id="version-true")


def _unknown_keys() -> Iterator[Case]:
    for key, near in (
        ("optm", "'optim'"),
        ("optim.lrr", "'lr'"),
        ("optim.schedule.warmup_step", "'warmup_steps'"),
        ("model.num_layer", "'num_layers'"),
        ("tokenizer.train.vocabsize", "'vocab_size'"),
        ("tokenizer.vocabfile", "'vocab_file'"),
        ("parallel.tensr", "'tensor'"),
        ("resources.device_per_node", "'devices_per_node'"),
        ("container.images", "'image'"),
        ("container.mounts.0.readonly", "'read_only'"),
        ("batch.globl", "'global'"),
        ("trainer.max_epoch", "'max_epochs'"),
        ("checkpoint.keep_lst", "'keep_last'"),
        ("text.patern", "'pattern'"),
        ("data.trian", "'train'"),
        ("task_templates.0.task_name", "'taskname'"),
        ("prompt.encoder_layer", "'encoder_layers'"),
        ("generation.max_tokens", "'max_new_tokens'"),
        ("stages.1.bse", "'base'"),
        ("stages.2.prompt_", "'prompt'"),
        ("max_steps", "trainer.max_steps"),
        ("optim.max_steps", "trainer.max_steps"),
        ("zebra", "known here"),
        ("$(touch pwned)", "unknown key"),
    ):
        yield _changed(key, 1, key.split(".")[-1], "unknown key", near, id=f"unknown-{key}")


_STRINGS = (
    "name",
    "stages.1.name",
    "stages.1.base",
    "stages.2.prompts",
    "tokenizer.tokenizer_file",
    "container.image",
    "container.workdir",
    "container.mounts.0.source",
    "container.mounts.0.target",
    "container.environment.NCCL_DEBUG",
    "text.pattern",
    "text.paths.0",
    "data.train.0",
    "data.validation.0",
    "data.test.0",
    "model.checkpoint",
    "task_templates.0.taskname",
    "task_templates.0.truncate_field",
    "task_templates.0.answer_field",
)
# What may hold any printable text: quoted where it is used, so no fault by itself (see HOSTILE).
_FREE = (
    "container.environment.NCCL_DEBUG",
    "container.workdir",
    "container.mounts.0.source",
    "container.mounts.0.target",
)
_CHOICES = ("model.position_embedding", "resources.device", "trainer.precision", "prompt.encoder", "stages.1.task")


def _hostile_strings() -> Iterator[Case]:
    for key in (*_STRINGS, *_CHOICES):
        part = key.split(".")[-1]
        for label, text in (
            ("newline", "x\ntouch pwned"),
            ("escape", "x\x1b[31m"),
            ("shell", "; touch pwned"),
            ("substitution", "$(touch pwned)"),
        ):
            if label in ("shell", "substitution") and key in _FREE:
                continue
            changes: list[tuple[str, Any]] = [(key, text)]
            if key == "tokenizer.tokenizer_file":
                changes.insert(0, ("tokenizer.train", DROP))
            if key == "model.checkpoint":
                # The other stages stand on the first.
                changes.append(("stages.0.tokenizer", {"train": {"vocab_size": 512}}))
            expected = () if part.isdigit() else (part,)
            case = _recipe(f"{label}-{key}", changed(*changes), *expected, faults=0)
            yield case
    for label, text in (("nul", "x\0y"), ("separator", "x\u2028y"), ("bidi", "x\u202ey"), ("tab", "x\ty")):
        yield _changed("container.environment.NCCL_DEBUG", text, "NCCL_DEBUG", "U+", id=f"{label}-environment")
        yield _changed("name", text, "name", "is no name", id=f"{label}-name")
    yield _changed("task_templates.0.prompt_template", "{words}\0{answer}", "control character", id="nul-template")
    for name in ("A B", "A=B", "$(x)", "A\nB", "HPCLM_RANK", "SLURM_JOB_ID", "PYXIS_CONTAINER_IMAGE", ""):
        yield _changed("container.environment", {name: "x"}, id=f"variable-{name!r}")
    yield _changed("container.mounts.0.source", "a,b", "','", id="mount-comma")
    yield _changed("container.mounts.0.target", "text", "start it with /", id="mount-relative")
    yield _changed("container.mounts.0.target", "/a:b", "':'", id="mount-colon")
    for name in ("..", "-rf", ".hidden", "a/b", "a b", "", "x" * 65, "ä"):
        yield _changed("name", name, "is no name", id=f"name-{name[:8]!r}")
    yield _changed("data.train", ["~/train.jsonl"], "~ is not expanded", id="home")
    yield _changed("data.train", ["$HOME/train.jsonl"], "no such file", id="variable-in-path")
    yield _changed("data.train", [""], "is empty", id="empty-path")
    yield _changed("data.train", ["x" * 5000], "longer than 4096", id="long-path")
    yield _changed("text.pattern", "../*", "holds '/'", id="pattern-slash")


def _missing_files() -> Iterator[Case]:
    for role in ("train", "validation", "test"):
        yield _changed(f"data.{role}", ["gone.jsonl"], "gone.jsonl", "no such file", f"data.{role}", id=f"no-{role}")
        yield _changed(f"data.{role}", ["text"], "is a folder", id=f"folder-{role}")
    yield _changed("text.paths", ["gone"], "no such file or folder", id="no-text")
    yield _changed("text.pattern", "*.md", "no file in it matches", id="no-match")
    yield _changed("tokenizer", {"tokenizer_file": "gone.json"}, "no such file", id="no-tokenizer")
    yield _recipe(
        "no-vocabulary",
        changed(("tokenizer", {"vocab_file": "gone.json", "merges_file": "gone.txt"})),
        "vocab_file",
        "merges_file",
        faults=2,
    )
    yield _recipe(
        "no-prompts", changed(("stages.2.prompts", "./gone"), ("stages.2.base", "pretrain")), "no such folder"
    )
    yield _recipe("no-checkpoint", single(), "no such folder", "model.checkpoint", faults=0)
    yield Case("no-recipe", lambda folder: folder / "gone.yaml", ("cannot be read",), faults=1)
    yield Case("recipe-folder", lambda folder: folder, ("cannot be read",), faults=1)


def _checkpoint_cases() -> Iterator[Case]:
    def with_base(id: str, change: Callable[[Path], Any], *expected: str, faults: int = 1) -> Case:  # noqa: A002
        def build(folder: Path) -> Path:
            change(write_checkpoint(folder))
            return write(folder, single())

        return Case(f"checkpoint-{id}", build, expected, faults=faults)

    yield with_base("empty", lambda base: (base / "model.json").unlink(), "holds no model.json", faults=0)
    yield with_base("torn", lambda base: (base / "model.json").write_text("{"), "cannot be read as a model", faults=0)
    yield with_base("list", lambda base: (base / "model.json").write_text("[]"), "cannot be read as a model", faults=0)
    yield with_base("partial", lambda base: (base / "model.json").write_text("{}"), "cannot be read", faults=0)
    yield with_base("types", lambda base: write_checkpoint(base.parent, num_layers="4"), "wrong type", faults=0)
    yield with_base("other", lambda base: write_checkpoint(base.parent, num_layers=8), "does not agree with 8")
    yield with_base("untokenized", lambda base: (base / "tokenizer.json").unlink(), "holds no tokenizer.json")
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
    yield with_tokenizer("text-ids", '{"model": {"vocab": {"a": "0"}}}', "no whole number")
    yield _changed("tokenizer", {"vocab_file": "a"}, "give both", id="tokenizer-half")
    yield _changed("tokenizer", {}, "give one of", id="tokenizer-none")
    yield _changed(
        "tokenizer",
        {"train": {"vocab_size": 512}, "tokenizer_file": "a"},
        "give one of",
        id="tokenizer-two",
    )
    yield _changed("model.vocab_size", 100, "less than the tokenizer's 512", id="vocabulary-small")


def _rows() -> Iterator[Case]:
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
        yield lines("open", '{"taskname": "first"', "is not JSON", role=role)
        yield lines("taskname", json.dumps({**ROW, "taskname": "second"}), "has no template", role=role)
        yield lines("number", json.dumps({**ROW, "words": 5}), "words is a number", role=role)
    yield lines("text", "hello", "is not JSON")
    yield lines("list", "[1]", "is a list")
    yield lines("string", '"a"', "is text")
    yield lines("null", "null", "is null")
    yield lines("digits", "9" * 5000, "is not JSON")
    yield lines("two", good + good, "is not JSON")
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
        yield rows("empty", "", "hold no rows", f"data.{role}", role=role)
    yield rows("blank", "\n\n \n", "hold no rows")
    yield rows("many", "x\n" * 50, "train.jsonl:1", "40 more lines", faults=11)
    yield rows(
        "field",
        (json.dumps({"taskname": "first", "word": "a", "answer": "b"}) + "\n") * 9,
        "{words} is in no row",
        "did you mean {word}?",
        "prompt_template",
    )


def _templates() -> Iterator[Case]:
    key = "task_templates.0."

    def one(id: str, changes: dict[str, Any], *expected: str, faults: int = 1) -> Case:  # noqa: A002
        recipe = changed(*((key + name, value) for name, value in changes.items()))
        return _recipe(f"template-{id}", recipe, *expected, faults=faults)

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
    yield one("empty-field", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {} {words} {answer}"}, "is no field", faults=0)
    yield one(
        "absent",
        {"prompt_template": "<|VIRTUAL_PROMPT_0|> {words} {colour} = {answer}"},
        "{colour} is in no row",
        faults=0,
    )
    yield one("answer-inside", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {words} = {answer}."}, "last")
    yield one("answer-space", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {words} = {answer} "}, "last")
    yield one("answer-twice", {"prompt_template": "<|VIRTUAL_PROMPT_0|> {answer} {words} = {answer}"}, "once")
    yield one("answer-field", {"answer_field": "label"}, "'label' is no field")
    yield one("answer-null", {"answer_field": None}, "name the field")
    yield one("truncate", {"truncate_field": "context"}, "'context' is no field", "words or null")
    yield one("truncate-answer", {"truncate_field": "answer"}, "must stay whole")
    yield one("tokens", {"total_virtual_tokens": 48, "virtual_token_splits": [48]}, "leave no room", "less than 48")
    yield one("no-tokens", {"total_virtual_tokens": 0}, "at least 1")
    yield one("init", {"prompt_init": "text", "prompt_init_text": "x"}, "task: prompt-tuning")
    yield one("init-choice", {"prompt_init": "zeros"}, "choose random, text")
    yield _recipe("template-init-text", single("prompt-tuning"), "no such folder", faults=0)
    second = {**changed()["task_templates"][0]}
    yield _changed("task_templates", [second, {**second}], "has a template already", id="template-same-task", faults=0)
    yield _changed(
        "task_templates",
        [second, {**second, "taskname": "other", "total_virtual_tokens": 4, "virtual_token_splits": [4]}],
        "same number of virtual tokens",
        id="template-counts",
    )
    yield _changed("task_templates", [], "task_templates", id="template-none", faults=0)
    yield _changed("task_templates", DROP, "task_templates", id="template-missing", faults=0)


def _rules() -> Iterator[Case]:
    def one(id: str, *changes: tuple[str, Any], expected: tuple[str, ...], faults: int = 1) -> Case:  # noqa: A002
        return _recipe(f"rule-{id}", changed(*changes), *expected, faults=faults)

    wide = ("resources.devices_per_node", 3)
    yield one("devices", wide, expected=("3 devices are no multiple of tensor 2",), faults=3 - 1)
    yield one("heads", wide, ("parallel.tensor", 3), expected=("num_attention_heads 4", "1, 2 or 4"), faults=0)
    yield one("layers", ("resources.devices_per_node", 6), ("parallel.pipeline", 3), expected=("num_layers 4",))
    yield one("ffn", ("model.ffn_hidden_size", 101), expected=("ffn_hidden_size 101",))
    yield one("groups", ("model.num_query_groups", 3), expected=("does not divide num_attention_heads 4",))
    yield one("hidden", ("model.hidden_size", 66), expected=("does not divide hidden_size 66",))
    yield one("batch", ("batch.global", 9), expected=("9 is no multiple of micro 4", "8 or 12"))
    yield one("min-lr", ("optim.min_lr", 0.1), expected=("is over lr",))
    yield one(
        "pipeline-min-lr",
        ("resources.devices_per_node", 4),
        ("parallel.pipeline", 2),
        ("optim.min_lr", 0.0001),
        expected=("must be 0 for p-tuning",),
    )
    yield one("sequence", ("parallel.tensor", 1), ("parallel.sequence", True), expected=("tensor ranks",))
    yield one("sequence-text", ("parallel.sequence", True), ("text.seq_length", 33), expected=("33 is no multiple",))
    yield one(
        "sequence-data", ("parallel.sequence", True), ("data.max_seq_length", 47), expected=("47 is no multiple",)
    )
    yield one("positions-text", ("text.seq_length", 65), expected=("over the model's", "64"))
    yield one("positions-data", ("data.max_seq_length", 65), expected=("over the model's", "64"))
    yield one("answer", ("generation.max_new_tokens", 64), expected=("leaves no room",))
    yield one("answer-virtual", ("generation.max_new_tokens", 58), expected=("6 virtual tokens leave no room",))
    yield one("bf16", ("trainer.precision", "bf16"), expected=("on device cpu choose fp32",))
    yield one("fp16", ("trainer.precision", "fp16"), expected=("on device cpu choose fp32",))
    yield one("encoder", ("prompt.encoder_hidden", 33), expected=("33 is no multiple of tensor 2", "32 or 34"))
    yield one("mlp", ("prompt.encoder", "mlp"), ("prompt.encoder_layers", 1), expected=("an mlp encoder has 2 layers",))
    yield one(
        "rope",
        ("model.position_embedding", "rope"),
        ("model.kv_channels", 15),
        expected=("even kv_channels",),
    )
    yield one("length", ("trainer", {"seed": 1}), expected=("says no length",))
    yield one("two-lengths", ("trainer.max_epochs", 1), expected=("keep one",))
    for key, value in (
        ("parallel.tensor", 0),
        ("parallel.tensor", -1),
        ("resources.nodes", 0),
        ("resources.nodes", 10**6),
        ("resources.time_limit_min", 0),
        ("batch.global", 0),
        ("batch.micro", -4),
        ("optim.lr", 0),
        ("optim.betas", [0.9, 1.0]),
        ("optim.weight_decay", -0.1),
        ("trainer.seed", -1),
        ("trainer.max_steps", 0),
        ("trainer.val_check_interval", 1.5),
        ("trainer.val_check_interval", 0),
        ("trainer.gradient_clip_norm", -1),
        ("generation.top_p", 0),
        ("generation.temperature", 0),
        ("text.validation_fraction", 1.0),
        ("model.hidden_dropout", 1),
        ("model.num_layers", 10**12),
        ("tokenizer.train.vocab_size", 10),
        ("checkpoint.keep_last", 0),
    ):
        yield _changed(key, value, key.split(".")[-1], "out of range", id=f"range-{key}={value}")
    for key in ("optim.lr", "model.layernorm_epsilon"):
        for word in (".inf", ".nan", "1e999"):
            text = dump(changed((key, "VALUE"))).replace("VALUE", word)
            yield _recipe(f"range-{key}={word}", text, key.split(".")[-1])


def _stages() -> Iterator[Case]:
    yield _changed("stages.1.base", "pretain", "no stage is called pretain", "did you mean pretrain?", id="stage-base")
    yield _changed("stages.1.base", "ptune", "ptune is not an earlier stage", id="stage-itself")
    yield _changed("stages.1.base", "evaluate", "is not an earlier stage", id="stage-later", faults=0)
    yield _changed("stages.2.prompts", "pretrain", "is a pretrain stage", "choose ptune", id="stage-prompts")
    yield _changed("stages.2.base", "ptune", "is a p-tuning stage", "choose pretrain", id="stage-wrong-base")
    yield _changed("stages.1.base", DROP, "needs a trained model", "model.checkpoint", id="stage-no-base", faults=0)
    yield _changed("stages.1.name", "pretrain", "is taken", id="stage-twice")
    yield _changed("stages.1.name", "PRETRAIN", "is taken", id="stage-case")
    yield _changed("stages.1.name", DROP, "name", "is missing", id="stage-unnamed")
    yield _changed("stages.1.task", DROP, "task", "is missing", id="stage-taskless")
    yield _changed("stages.1.task", "ptuning", "did you mean p-tuning?", id="stage-task")
    yield _changed("stages.1.prompts", "pretrain", "leave it out", id="stage-prompts-training")
    yield _changed("stages", [], "1 to 50 stages", id="stages-none")
    yield _changed("stages", "pretrain", "1 to 50 stages", id="stages-text")
    yield _changed("stages", ["pretrain"], "must be a mapping", id="stages-names")
    yield _changed("task", "pretrain", "stands beside stages", id="stages-and-task")
    yield _changed("name", DROP, "name", "is missing", id="name-missing")
    yield _changed("version", DROP, "version", "is missing", id="version-missing")
    yield _changed("tokenizer", DROP, "tokenizer", "is missing", id="tokenizer-missing")
    yield _changed("model", DROP, "num_layers", "missing", id="model-missing")
    yield _changed("model.hidden_size", DROP, "hidden_size is missing", id="model-part")
    yield _changed("text", DROP, "text", "is missing", id="text-missing")
    yield _changed("data.train", [], "train", "is missing", id="train-missing")
    yield _changed("data.test", [], "test", "is missing", id="test-missing")
    for section in ("batch", "optim", "trainer"):
        yield _changed(section, DROP, section, "is missing", id=f"{section}-missing", faults=2)
    yield _changed("stages.1.model", {"num_layers": 2}, "does not agree with 4", id="stage-model")
    yield _changed("stages.1.model", {"checkpoint": "text"}, "stands beside base", "keep one", id="stage-two-bases")
    yield _recipe("single-base", {**single(), "base": "pretrain"}, "give model.checkpoint")
    yield _recipe("single-no-task", {k: v for k, v in single().items() if k != "task"}, "task", "is missing")
    yield _recipe(
        "single-new-tokenizer",
        single("pretrain", tokenizer={"train": {"vocab_size": 512}}, text={"paths": ["text"], "seq_length": 32}),
        "belong to the tokenizer",
        faults=0,
    )
    yield _recipe("single-task", single("p-tunning"), "did you mean p-tuning?")
    yield _recipe(
        "single-train-tokenizer", {**single(), "tokenizer": {"train": {"vocab_size": 512}}}, "only a pretrain", faults=0
    )


def _syntax() -> Iterator[Case]:
    good = dump(changed())
    for label, text, *expected in (
        ("empty", "", "is a mapping"),
        ("comment", "# nothing\n", "is a mapping"),
        ("list", "- a\n", "is a mapping"),
        ("scalar", "hello\n", "is a mapping"),
        ("tab", good.replace("  num_layers", "\tnum_layers", 1), "a tab"),
        ("open-bracket", good + "x: [1\n", "not valid YAML"),
        ("open-quote", good + 'x: "a\n', "not valid YAML"),
        ("colon", good + "x: a: b\n", "goes into quotes"),
        ("at", good + "x: @y\n", "goes into quotes"),
        ("twice", good + "name: other\n", "written twice"),
        ("twice-below", good.replace("  tensor: 2", "  tensor: 2\n  tensor: 4"), "tensor: written twice"),
        ("tag", good + "x: !!python/object/apply:os.system ['touch pwned']\n", "the tag"),
        ("local-tag", good + "x: !thing 5\n", "the tag"),
        ("documents", good + "---\na: 1\n", "a second document"),
        ("alias", good + "x: *nothing\n", "has no anchor"),
        ("self-alias", good + "x: &a [*a]\n", "has no anchor"),
        ("merge", good + "x: {<<: 5}\n", "takes a mapping"),
        ("key-list", good + "? [a]\n: 1\n", "a key must be a word"),
        ("key-empty", good + '"": 1\n', "cannot be a key"),
        ("key-newline", good + '"a\\nb": 1\n', "cannot be a key"),
        ("key-long", good + "x" * 200 + ": 1\n", "cannot be a key"),
        ("deep", good + "x: " + "[" * 60 + "]" * 60 + "\n", "nested deeper"),
        ("indentation", good.replace("  tensor: 2", "  tensor: 2\n pipeline: 1"), "not valid YAML"),
        ("yaml-2", "%YAML 9.0\n---\n" + good, "not valid YAML"),
    ):
        yield _recipe(f"yaml-{label}", text, *expected)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    yield _recipe("yaml-bomb", bomb, "unfolds to more than")
    yield _recipe("yaml-nul", b"name: a\0b\n", "U+0000")
    yield _recipe("yaml-escape", b"name: \x1b[31m\n", "U+001B")
    yield _recipe("yaml-latin-1", "name: ä\n".encode("latin-1"), "UTF-8")
    yield _recipe("yaml-utf-16", good.encode("utf-16"), "UTF-8")
    yield _recipe("yaml-binary", bytes(range(128, 256)), "UTF-8")
    yield _recipe("yaml-huge", "# " + "x" * (1 << 20), "larger than 1 MiB")
    yield _recipe("yaml-surrogate", good + 'x: "\\ud800"\n', "not valid YAML")


def _overrides() -> Iterator[Case]:
    for text, *expected in (
        ("", "key=value"),
        ("optim.lr", "key=value"),
        ("=1", "key=value"),
        ("optim.lr=", "a value is missing"),
        (".lr=1", "is no key"),
        ("optim..lr=1", "is no key"),
        ("optim. lr=1", "is no key"),
        ("optm.lr=1", "did you mean 'optim'?"),
        ("optim.lrr=1", "did you mean 'lr'?"),
        ("optim.lr=abc", "must be a number"),
        ("optim.lr='0.1'", "leave the quotes out"),
        ("optim={lr: 1}", "set the keys of a mapping one by one"),
        ("optim.betas=[[1], 2]", "one scalar or a list"),
        ("optim.lr=[1", "not valid YAML"),
        ("optim.lr=a: b: c", "quotes"),
        ("optim.lr.x=1", "below a plain value"),
        ("stages=1", "stages.<name>"),
        ("stages.ptun.optim.lr=1", "did you mean stages.ptune?"),
        ("stages.ptune=1", "stages.<name>.<key>"),
        ("task_templates.5.taskname=x", "choose 0 to 0 or first"),
        ("task_templates.nope.taskname=x", "choose 0 to 0 or first"),
        ("data.tests.0=x", "no list tests"),
        ("name=$(touch pwned)", "is no name"),
        ("name=a\nb", "--set"),
        ("optim.lr=1\x00", "--set"),
        ("parallel.tensor=3", "3 does not divide num_attention_heads 4"),
        ("max_steps=5", "did you mean trainer.max_steps?"),
    ):
        several = 0 if text.startswith("parallel") else 1
        yield Case(f"set-{text!r}", lambda folder: write(folder, changed()), tuple(expected), (text,), several)
    twice = ("optim.lr=1", "optim.lr=2")
    yield Case("set-twice", lambda folder: write(folder, changed()), ("already set by",), twice)

    def own(folder: Path) -> Path:
        recipe = changed()
        for number, stage in enumerate(recipe["stages"]):
            stage["parallel"] = {"tensor": 2 + 0 * number}
        return write(folder, recipe)

    yield Case("set-nobody", own, ("changes nothing", "stages.<name>.parallel.tensor"), ("parallel.tensor=1",))
    yield Case(
        "set-stage-of-one",
        lambda folder: (write_checkpoint(folder), write(folder, single()))[1],
        ("single stage",),
        ("stages.a.optim.lr=1",),
    )


CASES: list[Case] = [
    *_wrong_types(),
    *_unknown_keys(),
    *_hostile_strings(),
    *_missing_files(),
    *_checkpoint_cases(),
    *_rows(),
    *_templates(),
    *_rules(),
    *_stages(),
    *_syntax(),
    *_overrides(),
]

# Text with the shell's own characters that is nobody's fault: it must plan, and nothing in it may ever run.
HOSTILE: list[Case] = [
    _changed(
        "task_templates.0.prompt_template",
        "<|VIRTUAL_PROMPT_0|> $(touch pwned) `touch pwned`; touch pwned\n'\"{words}\\ = {answer}",
        id="legal-template",
        faults=0,
    ),
    _changed(
        "container.environment", {"A": "$(touch pwned)", "B": "`touch pwned`'\"; touch pwned"}, id="legal-variable"
    ),
    _changed("container.workdir", "/a b/$(touch pwned)'\"", id="legal-workdir"),
    _changed("container.mounts.0.source", "text/$(touch pwned) '\"", id="legal-mount"),
]
