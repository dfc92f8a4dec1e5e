"""A broken recipe is refused in one message with place and fix, and whatever it holds, nothing of it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpclm.core.errors import RecipeError
from hpclm.planning import make_plan, picture, stage_specs
from hpclm.recipe import load
from tests.support.broken import CASES, HOSTILE
from tests.support.broken_case import Case
from tests.support.samples import changed, write

# `file:line key: what; how to fix it`, or the command-line argument in the place's stead.
SHAPE = re.compile(r"(--set .+?|\S+:\d+( .+?)?): .+")
# What is wrong with a whole file has no line.
WHOLE_FILE = re.compile(r"\S+: (cannot be read|\d+ more lines).+")


def test_there_are_two_hundred_and_they_differ() -> None:
    assert len(CASES) >= 200
    assert len({case.id for case in CASES}) == len(CASES)


def refusal(case: Case, folder: Path) -> list[str]:
    """The lines of the message that refuses the case."""
    try:
        plan = make_plan(load(case.build(folder), list(case.overrides)))
    except RecipeError as error:
        return str(error).split("\n")
    picture(plan)
    plan.to_dict()
    return [str(finding) for finding in plan.errors]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_broken_recipes_are_refused_with_place_and_fix(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = refusal(case, tmp_path)
    assert lines
    for line in lines:
        assert SHAPE.fullmatch(line) or WHOLE_FILE.fullmatch(line), line
        assert re.search(r"; |did you mean|known here|choose", line), f"no fix: {line}"
        assert line.isprintable()
    message = "\n".join(lines)
    for expected in case.expected:
        assert expected in message
    if case.faults:
        assert len(lines) == case.faults, message
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.id)
def test_shell_characters_in_free_text_are_data(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = make_plan(load(case.build(tmp_path)))
    assert not plan.errors
    assert stage_specs(plan, "run", tmp_path / "run")
    assert not list(tmp_path.rglob("pwned"))


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    recipe = changed(("optim.lr", "x"), ("parallel.tensr", 2), ("stages.1.bse", "a"), ("name", "a b"))
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, recipe))
    assert len(str(caught.value).split("\n")) == 4


def test_every_finding_is_told_at_once(tmp_path: Path) -> None:
    recipe = changed(("parallel.tensor", 3), ("batch.global", 7), ("optim.min_lr", 1.0), ("data.train", ["gone.jsonl"]))
    errors = make_plan(load(write(tmp_path, recipe))).errors
    assert len({error.rule for error in errors}) >= 5


def test_folders_with_hostile_names_are_only_names(tmp_path: Path) -> None:
    folder = tmp_path / "a b'\"$(touch pwned);*"
    folder.mkdir()
    assert not make_plan(load(write(folder, changed()))).errors
    assert not list(tmp_path.rglob("pwned"))
