"""docs/recipe.md, written from the schema: `python -m hpclm.recipe.reference > docs/recipe.md`."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from hpclm.recipe.error_messages import section_of
from hpclm.recipe.schema.stage import Stage, section_names, stage_model

_INTRO = """\
# The recipe

<!-- Written by `python -m hpclm.recipe.reference`; a test keeps it in step with the schema. -->

A recipe is one YAML file (1.2: `1e-4` is a number, `no` is text). Unknown keys are refused, and nothing is converted:
text is not read as a number. Paths are relative to the recipe's folder; `~` and variables are not expanded.

```yaml
version: 1                      # of this format
name: my-run                    # letters, digits, '.', '_' and '-'
task: p-tuning                  # one stage …
model: {checkpoint: ../models/gpt}
# … every other section
```

## Recipes from others

`extends: base.yaml` merges a recipe over another one, or over several (`extends: [base.yaml, tasks/squad.yaml]`). Later
files override earlier ones, and the recipe itself overrides all of them. Mappings are merged key by key, lists and
values are replaced, stages are matched by name. All paths are relative to the folder of the submitted recipe.

A NeMo 1.x YAML file for prompt learning or its evaluation can be used as a recipe: `--set` then takes NeMo's keys
(`--set model.optim.lr=1e-4`), and `--set hpclm.KEY=…` the keys below. So can a Megatron-LM launch script of
pretrain_gpt.py (`.sh`, `.slurm`, …), or a file of its flags (`.args`): `--set num_layers=24` and `--set ~fp16` then
take its flags. So can LLaMA-Factory's and axolotl's YAML and TrainingArguments as JSON (docs/importing-fine-tuning.md).
`hpclm recipe import FILE` translates such a file into a recipe.

## Several stages

A recipe with `stages:` instead of `task:` is a chain of jobs. Each stage is merged over the sections at the top level:
mappings key by key, lists and values are replaced. A stage that names another one in `base` or `prompts` starts when
that one has completed, and finds its checkpoints automatically. A stage must be listed after the stages it names.

```yaml
version: 1
name: my-run
model: {num_layers: 4, hidden_size: 128, num_attention_heads: 4}
trainer: {max_steps: 100}       # for every stage that has no other
stages:
  - {name: pretrain, task: pretrain}
  - {name: ptune, task: p-tuning, base: pretrain, trainer: {max_epochs: 5}}
  - {name: evaluate, task: evaluate, prompts: ptune}
```

`evaluate` uses the base model, rows and templates of its prompts stage unless it sets its own. If two keys exclude each
other (`max_steps` and `max_epochs`; the three kinds of tokenizer), a stage's own key replaces an inherited one.

## From the command line

`--set optim.lr=1e-3` changes a key of the top level for every stage that inherits it, and
`--set stages.ptune.optim.lr=1e-3` changes one stage. List entries are selected by number, templates also by taskname:
`--set task_templates.0.total_virtual_tokens=20`. Values are YAML: `true`, `null`, `[0.9, 0.95]`, `"text"`. A `--set`
that would change nothing is refused. `--nodes N` and `--devices-per-node N` are short for `--set resources.nodes=N` and
`--set resources.devices_per_node=N`.

## Rows

JSONL: one object per line, all values are text, with `taskname` and the fields of that task's template. A field that a
row does not have is empty; training rows must have the answer.

```json
{"taskname": "squad", "context": "…", "question": "…", "answer": "…"}
```
"""


def markdown() -> str:
    """The whole page."""
    parts = [_INTRO, "## Keys of a stage\n", _table(Stage, only={"name", "task", "base", "prompts"})]
    for key, info in stage_model().model_fields.items():
        if key in section_names():
            model = section_of(info.annotation)
            assert model is not None
            parts.append(_section(key, model, info.description or ""))
    return "\n".join(parts).rstrip() + "\n"


def _section(key: str, model: type[BaseModel], note: str) -> str:
    """A section's table, and those of the sections within."""
    summary = " ".join(line.strip() for line in (model.__doc__ or "").strip().splitlines() if line.strip())
    # The field's description says whether a section may be left out; the model's docstring says what it is.
    when = f" ({note[:1].upper()}{note[1:]}.)" if note.startswith(("needed", "left out")) else ""
    parts = [f"## `{key}`\n", f"{summary}{when}\n", _table(model)]
    for name, info in model.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            parts.append(_section(f"{key}.{info.alias or name}", inner, info.description or ""))
    return "\n".join(parts)


def _table(model: type[BaseModel], only: set[str] | None = None) -> str:
    properties = model.model_json_schema(by_alias=True)["properties"]
    lines = ["| key | value | default | |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        if only is not None and name not in only:
            continue
        key = info.alias or name
        default = "required" if info.is_required() else _default(info.get_default(call_default_factory=True))
        lines.append(f"| `{key}` | {_kind(properties[key])} | {default} | {info.description} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    words = {None: "null", True: "true", False: "false", (): "[]"}
    if isinstance(value, tuple) and value:
        return f"`[{', '.join(str(item) for item in value)}]`"
    if isinstance(value, dict):
        return "`{}`"
    return f"`{words.get(value, value) if not isinstance(value, int | float) or isinstance(value, bool) else value}`"


def _kind(schema: dict[str, Any]) -> str:
    """A description of the values a key takes."""
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    schema = options[0]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema or "allOf" in schema:
        return "mapping"
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {_kind(items)}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    return f"{words.get(str(kind), 'mapping of text' if kind == 'object' else 'number')}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    low = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum"), schema.get("exclusiveMaximum")
    words = []
    if low[0] is not None:
        words.append(f"from {low[0]:g}")
    if low[1] is not None:
        words.append(f"above {low[1]:g}")
    # Limits that only reject nonsense are not shown.
    if high[0] is not None and high[0] <= 1024:
        words.append(f"to {high[0]:g}")
    if high[1] is not None and high[1] <= 1024:
        words.append(f"below {high[1]:g}")
    return f" {' '.join(words)}" if words else ""


if __name__ == "__main__":
    sys.stdout.write(markdown())
