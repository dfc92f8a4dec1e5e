"""`extends`: recipes laid over others, each value at the file and line that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclm.core.errors import RecipeError
from hpclm.core.spec import StageSpec
from hpclm.planning import make_plan
from hpclm.recipe import load

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = """
version: 1
name: base
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 4, vocab_size: 300}
tokenizer: {train: {vocab_size: 300}}
text: {paths: [text]}
batch: {global: 4}
trainer: {max_steps: 5, seed: 1}
optim: {lr: 0.1}
stages:
  - {name: a, task: pretrain, trainer: {seed: 7}}
  - {name: b, task: pretrain}
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{list(files)[-1]}.yaml"


def test_the_recipe_lies_over_what_it_extends_and_later_ones_over_earlier(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base=BASE,
        fast="optim: {lr: 0.3}\ntrainer: {max_epochs: 2}\n",
        mine="extends: [base.yaml, fast.yaml]\nname: mine\nbatch: {micro: 2}\nstages:\n"
        "  - {name: b, optim: {min_lr: 0.01}}\n  - {name: c, task: pretrain}\n",
    )
    loaded = load(path)
    assert loaded.name == "mine"
    first, second, third = (stage.recipe for stage in loaded.stages)
    assert [first.name, second.name, third.name] == ["a", "b", "c"]
    assert first.batch is not None
    assert (first.batch.global_size, first.batch.micro_size) == (4, 2)
    assert first.trainer is not None
    # the one way to say a length puts the other aside
    assert (first.trainer.seed, first.trainer.max_epochs, first.trainer.max_steps) == (7, 2, None)
    assert second.optim is not None
    assert (second.optim.lr, second.optim.min_lr) == (0.3, 0.01)
    assert "# extends base.yaml:" in loaded.text
    assert "# optim: {lr: 0.3}" in loaded.text
    assert loaded.text.endswith("{name: c, task: pretrain}\n")


def test_a_fault_is_named_in_the_file_that_has_it(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE.replace("lr: 0.1", "lr: fast"), mine="extends: base.yaml\n")
    with pytest.raises(RecipeError, match=r"base.yaml:9 optim.lr: must be a number"):
        load(path)


def test_overrides_go_over_all(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE, mine="extends: base.yaml\noptim: {lr: 0.2}\n")
    optim = load(path, ["optim.lr=0.5", "stages.a.trainer.seed=9"]).stages[0].recipe.optim
    assert optim is not None
    assert optim.lr == 0.5


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"mine": "extends: gone.yaml\n"}, r"mine.yaml:1: extends: \S+gone.yaml: does not exist"),
        ({"mine": "extends: mine.yaml\n"}, "mine.yaml extends this recipe, which is a cycle"),
        ({"b": "extends: mine.yaml\n", "mine": "extends: b.yaml\n"}, "extends this recipe, which is a cycle"),
        ({"mine": "extends: {a: b}\n"}, "must be a file or a list of files"),
        ({"mine": "extends: []\n"}, "must be a file or a list of files"),
        ({"mine": 'extends: "a\\nb"\n'}, "must be a file or a list of files"),
    ],
)
def test_what_cannot_be_extended_is_said(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load(write(tmp_path, **files))


def test_a_family_of_files_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"r{number}.yaml").write_text(f"extends: r{number + 1}.yaml\n")
    with pytest.raises(RecipeError, match="more than 16 files"):
        load(tmp_path / "r0.yaml")


SIZES, TASKS = ("345m", "1.3b", "5b", "20b"), ("ptune", "sentiment", "intent_and_slot")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_the_posts_tasks_plan_at_every_size(size: str, task: str) -> None:
    loaded = load(RECIPES / f"gpt{size}_{task}.yaml", nodes=2)
    plan = make_plan(loaded, files=False)
    assert not plan.errors
    layers = {"345m": 24, "1.3b": 24, "5b": 24, "20b": 44}[size]
    assert all(isinstance(stage.spec, StageSpec) and stage.spec.model.num_layers == layers for stage in plan.stages)
    assert len((RECIPES / f"gpt{size}_{task}.yaml").read_text().splitlines()) < 12
