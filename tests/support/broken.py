"""Recipes that a person could have written and that cannot run: each must be refused in one message.

`CASES` is shared: the recipe's own tests check the message's place and fix, the launch tests check that nothing is
submitted. A case writes its recipe and files into a folder and lists what the message must contain.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpclm.recipe.error_messages import section_of
from hpclm.recipe.schema.stage import section_names, stage_model
from tests.support.broken_case import Case, changed_case, recipe_case
from tests.support.broken_files import checkpoint_cases, missing_files, row_cases, template_cases
from tests.support.samples import DROP, changed, dump, single, write, write_checkpoint


def _leaves(model: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the schema that is no section, dotted, with a value of a wrong type for it."""
    for name, info in (model or stage_model()).model_fields.items():
        key = info.alias or name
        if not prefix and key not in section_names():
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
        # these sections need some keys whatever else is wrong with them
        owned: dict[str, dict[str, object]] = {
            "program": {"argv": ["a"]},
            "nemo": {"model": "/a.nemo"},
            "megatron": {"data_path": ["a"]},
            "tokenize": {"inputs": ["a"]},
            "indexed": {"paths": ["a"]},
            "trainer.recompute": {"granularity": "full"},
            "batch.rampup": {"start": 1, "increment": 1, "samples": 1},
        }
        section = key.rpartition(".")[0]
        needed = [(f"{section}.{name}", value) for name, value in owned.get(section, {}).items()]
        yield recipe_case(f"type-{key}", changed(*needed, (key, wrong)), key.split(".")[-1], "must be")
    for section in sorted(section_names()):
        yield changed_case(section, "text", section, "must be", id=f"type-section-{section}")
    for key, value in (("optim.lr", "0.1"), ("trainer.max_steps", "ten"), ("trainer.max_steps", 1.5)):
        yield changed_case(key, value, key, "number")
    yield changed_case("parallel.sequence", "yes", "true or false", "write true", id="bool-yes")
    yield changed_case("name", 5, "name", "quotes", id="name-number")
    yield changed_case("version", "1", "version", "write 'version: 1'", id="version-text")
    yield changed_case("version", 2, "version 1", id="version-2")
    yield changed_case("version", True, "version 1", id="version-true")


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
        yield changed_case(key, 1, key.split(".")[-1], "unknown key", near, id=f"unknown-{key}")


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
# What may hold any printable text: quoted where it is used, so not an error by itself (see HOSTILE).
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
            case = recipe_case(f"{label}-{key}", changed(*changes), *expected, faults=0)
            yield case
    for label, text in (("nul", "x\0y"), ("separator", "x\u2028y"), ("bidi", "x\u202ey"), ("tab", "x\ty")):
        yield changed_case("container.environment.NCCL_DEBUG", text, "NCCL_DEBUG", "U+", id=f"{label}-environment")
        yield changed_case("name", text, "name", "is not a valid name", id=f"{label}-name")
    yield changed_case("task_templates.0.prompt_template", "{words}\0{answer}", "control character", id="nul-template")
    for name in ("A B", "A=B", "$(x)", "A\nB", "HPCLM_RANK", "SLURM_JOB_ID", "PYXIS_CONTAINER_IMAGE", ""):
        yield changed_case("container.environment", {name: "x"}, id=f"variable-{name!r}")
    yield changed_case("container.mounts.0.source", "a,b", "','", id="mount-comma")
    yield changed_case("container.mounts.0.target", "text", "start it with /", id="mount-relative")
    yield changed_case("container.mounts.0.target", "/a:b", "':'", id="mount-colon")
    for name in ("..", "-rf", ".hidden", "a/b", "a b", "", "x" * 65, "ä"):
        yield changed_case("name", name, "is not a valid name", id=f"name-{name[:8]!r}")
    yield changed_case("data.train", ["~/train.jsonl"], "~ is not expanded", id="home")
    yield changed_case("data.train", ["$HOME/train.jsonl"], "does not exist", id="variable-in-path")
    yield changed_case("data.train", [""], "is empty", id="empty-path")
    yield changed_case("data.train", ["x" * 5000], "longer than 4096", id="long-path")
    yield changed_case("text.pattern", "../*", "contains '/'", id="pattern-slash")


def _rules() -> Iterator[Case]:
    def one(id: str, *changes: tuple[str, Any], expected: tuple[str, ...], faults: int = 1) -> Case:  # noqa: A002
        return recipe_case(f"rule-{id}", changed(*changes), *expected, faults=faults)

    wide = ("resources.devices_per_node", 3)
    yield one("devices", wide, expected=("3 devices are not a multiple of tensor 2",), faults=3 - 1)
    yield one("heads", wide, ("parallel.tensor", 3), expected=("num_attention_heads 4", "1, 2 or 4"), faults=0)
    yield one("layers", ("resources.devices_per_node", 6), ("parallel.pipeline", 3), expected=("num_layers 4",))
    yield one("ffn", ("model.ffn_hidden_size", 101), expected=("ffn_hidden_size 101",))
    yield one("groups", ("model.num_query_groups", 3), expected=("does not divide num_attention_heads 4",))
    yield one("hidden", ("model.hidden_size", 66), expected=("does not divide hidden_size 66",))
    yield one("batch", ("batch.global", 9), expected=("9 is not a multiple of micro 4", "8 or 12"))
    yield one("min-lr", ("optim.min_lr", 0.1), expected=("is greater than lr",))
    yield one(
        "pipeline-min-lr",
        ("resources.devices_per_node", 4),
        ("parallel.pipeline", 2),
        ("optim.min_lr", 0.0001),
        expected=("must be 0 for p-tuning",),
    )
    yield one("sequence-text", ("parallel.sequence", True), ("text.seq_length", 33), expected=("33 is not a multiple",))
    yield one(
        "sequence-data", ("parallel.sequence", True), ("data.max_seq_length", 47), expected=("47 is not a multiple",)
    )
    yield one("positions-text", ("text.seq_length", 65), expected=("exceeds the model's", "64"))
    yield one("positions-data", ("data.max_seq_length", 65), expected=("exceeds the model's", "64"))
    yield one("answer", ("generation.max_new_tokens", 64), expected=("leaves no room",))
    yield one("answer-virtual", ("generation.max_new_tokens", 58), expected=("6 virtual tokens leave no room",))
    yield one("bf16", ("trainer.precision", "bf16"), expected=("on device cpu choose fp32",))
    yield one("fp16", ("trainer.precision", "fp16"), expected=("on device cpu choose fp32",))
    yield one("encoder", ("prompt.encoder_hidden", 33), expected=("33 is not a multiple of tensor 2", "32 or 34"))
    yield one(
        "mlp",
        ("prompt.encoder", "mlp"),
        ("prompt.encoder_layers", 1),
        expected=("an mlp encoder needs at least 2 layers",),
    )
    yield one(
        "rope",
        ("model.position_embedding", "rope"),
        ("model.kv_channels", 15),
        expected=("even kv_channels",),
    )
    yield one("length", ("trainer", {"seed": 1}), expected=("sets no training length",))
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
        yield changed_case(key, value, key.split(".")[-1], "out of range", id=f"range-{key}={value}")
    for key in ("optim.lr", "model.layernorm_epsilon"):
        for word in (".inf", ".nan", "1e999"):
            text = dump(changed((key, "VALUE"))).replace("VALUE", word)
            yield recipe_case(f"range-{key}={word}", text, key.split(".")[-1])


def _stages() -> Iterator[Case]:
    yield changed_case(
        "stages.1.base", "pretain", "no stage is called pretain", "did you mean pretrain?", id="stage-base"
    )
    yield changed_case("stages.1.base", "ptune", "ptune is not an earlier stage", id="stage-itself")
    yield changed_case("stages.1.base", "evaluate", "is not an earlier stage", id="stage-later", faults=0)
    yield changed_case("stages.2.prompts", "pretrain", "is a pretrain stage", "choose ptune", id="stage-prompts")
    yield changed_case("stages.2.base", "ptune", "is a p-tuning stage", "choose pretrain", id="stage-wrong-base")
    yield changed_case("stages.1.base", DROP, "needs a trained model", "model.checkpoint", id="stage-no-base", faults=0)
    yield changed_case("stages.1.name", "pretrain", "is already used", id="stage-twice")
    yield changed_case("stages.1.name", "PRETRAIN", "is already used", id="stage-case")
    yield changed_case("stages.1.name", DROP, "name", "is missing", id="stage-unnamed")
    yield changed_case("stages.1.task", DROP, "task", "is missing", id="stage-taskless")
    yield changed_case("stages.1.task", "ptuning", "did you mean p-tuning?", id="stage-task")
    yield changed_case("stages.1.prompts", "pretrain", "is a pretrain stage", id="stage-prompts-training")
    yield changed_case("stages.0.prompts", "ptune", "leave it out", id="stage-prompts-pretrain")
    yield changed_case("prompt", {"encoder": "biglstm", "encoder_hidden": 33}, "choose 32 or 34", id="biglstm-odd")
    yield changed_case("stages", [], "1 to 50 stages", id="stages-none")
    yield changed_case("stages", "pretrain", "1 to 50 stages", id="stages-text")
    yield changed_case("stages", ["pretrain"], "must be a mapping", id="stages-names")
    yield changed_case("task", "pretrain", "cannot be combined with stages", id="stages-and-task")
    yield changed_case("name", DROP, "name", "is missing", id="name-missing")
    yield changed_case("version", DROP, "version", "is missing", id="version-missing")
    yield changed_case("tokenizer", DROP, "tokenizer", "is missing", id="tokenizer-missing")
    yield changed_case("model", DROP, "num_layers", "missing", id="model-missing")
    yield changed_case("model.hidden_size", DROP, "hidden_size is missing", id="model-part")
    yield changed_case("text", DROP, "text", "is missing", id="text-missing")
    yield changed_case("data.train", [], "train", "is missing", id="train-missing")
    yield changed_case("data.test", [], "test", "is missing", id="test-missing")
    for section in ("batch", "optim", "trainer"):
        yield changed_case(section, DROP, section, "is missing", id=f"{section}-missing", faults=2)
    yield changed_case("stages.1.model", {"num_layers": 2}, "does not agree with 4", id="stage-model")
    yield changed_case(
        "stages.1.model", {"checkpoint": "text"}, "cannot be combined with base", "keep one", id="stage-two-bases"
    )
    yield recipe_case("single-base", {**single(), "base": "pretrain"}, "give model.checkpoint")
    yield recipe_case("single-no-task", {k: v for k, v in single().items() if k != "task"}, "task", "is missing")
    yield recipe_case(
        "single-new-tokenizer",
        single("pretrain", tokenizer={"train": {"vocab_size": 512}}, text={"paths": ["text"], "seq_length": 32}),
        "belong to the tokenizer",
        faults=0,
    )
    yield recipe_case("single-task", single("p-tunning"), "did you mean p-tuning?")
    yield recipe_case(
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
        ("colon", good + "x: a: b\n", "must be put in quotes"),
        ("at", good + "x: @y\n", "must be put in quotes"),
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
        yield recipe_case(f"yaml-{label}", text, *expected)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    yield recipe_case("yaml-bomb", bomb, "expands to more than")
    yield recipe_case("yaml-nul", b"name: a\0b\n", "U+0000")
    yield recipe_case("yaml-escape", b"name: \x1b[31m\n", "U+001B")
    yield recipe_case("yaml-latin-1", "name: ä\n".encode("latin-1"), "UTF-8")
    yield recipe_case("yaml-utf-16", good.encode("utf-16"), "UTF-8")
    yield recipe_case("yaml-binary", bytes(range(128, 256)), "UTF-8")
    yield recipe_case("yaml-huge", "# " + "x" * (1 << 20), "larger than 1 MiB")
    yield recipe_case("yaml-surrogate", good + 'x: "\\ud800"\n', "not valid YAML")


def _overrides() -> Iterator[Case]:
    for text, *expected in (
        ("", "key=value"),
        ("optim.lr", "key=value"),
        ("=1", "key=value"),
        ("optim.lr=", "a value is missing"),
        (".lr=1", "is not a valid key"),
        ("optim..lr=1", "is not a valid key"),
        ("optim. lr=1", "is not a valid key"),
        ("optm.lr=1", "did you mean 'optim'?"),
        ("optim.lrr=1", "did you mean 'lr'?"),
        ("optim.lr=abc", "must be a number"),
        ("optim.lr='0.1'", "leave the quotes out"),
        ("optim={lr: 1}", "set the keys of a mapping one by one"),
        ("optim.betas=[[1], 0.9]", "must be a number, not a list"),
        ("optim.lr=[1", "not valid YAML"),
        ("optim.lr=a: b: c", "quotes"),
        ("optim.lr.x=1", "below a plain value"),
        ("stages=1", "stages.<name>"),
        ("stages.ptun.optim.lr=1", "did you mean stages.ptune?"),
        ("stages.ptune=1", "stages.<name>.<key>"),
        ("task_templates.5.taskname=x", "choose 0 to 0 or first"),
        ("task_templates.nope.taskname=x", "choose 0 to 0 or first"),
        ("data.tests.0=x", "no list tests"),
        ("name=$(touch pwned)", "is not a valid name"),
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

    yield Case("set-nobody", own, ("has no effect", "stages.<name>.parallel.tensor"), ("parallel.tensor=1",))
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
    *missing_files(),
    *checkpoint_cases(),
    *row_cases(),
    *template_cases(),
    *_rules(),
    *_stages(),
    *_syntax(),
    *_overrides(),
]

# Text with shell characters that is valid: it must plan, and nothing in it may ever run.
HOSTILE: list[Case] = [
    changed_case(
        "task_templates.0.prompt_template",
        "<|VIRTUAL_PROMPT_0|> $(touch pwned) `touch pwned`; touch pwned\n'\"{words}\\ = {answer}",
        id="legal-template",
        faults=0,
    ),
    changed_case(
        "container.environment", {"A": "$(touch pwned)", "B": "`touch pwned`'\"; touch pwned"}, id="legal-variable"
    ),
    changed_case("container.workdir", "/a b/$(touch pwned)'\"", id="legal-workdir"),
    changed_case("container.mounts.0.source", "text/$(touch pwned) '\"", id="legal-mount"),
]
