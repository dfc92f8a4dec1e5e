"""What engine hf cannot work with is told in one message, with place and fix, before anything is queued."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.errors import RecipeError
from hpclm.planning import make_plan, picture
from hpclm.recipe import load
from hpclm.runs import submit as submitting
from tests.support.broken_case import Case
from tests.support.hf_broken import HF_CASES
from tests.support.hf_broken_files import TOKENIZER_CONFIG, Content, hf_recipe, write_hf

# `file:line key: what; how to fix it`; a row's place is its file and line, or its number.
SHAPE = re.compile(r"\S+(:\d+( \S+?)?| row \d+)?: .+")
FIX = re.compile(r"; |did you mean|known here|choose|write |give ")


def refusal(case: Case, folder: Path) -> list[str]:
    """The lines of the message that refuses the case."""
    try:
        plan = make_plan(load(case.build(folder), list(case.overrides)))
    except RecipeError as error:
        return str(error).split("\n")
    picture(plan)
    plan.to_dict()
    return [str(finding) for finding in plan.errors]


def test_the_recipe_that_is_broken_here_is_whole(tmp_path: Path) -> None:
    plan = make_plan(load(write_hf(tmp_path, hf_recipe())))
    assert [str(one) for one in plan.errors] == []


def test_padding_with_the_end_token_is_told_and_no_fault(tmp_path: Path) -> None:
    padded = {**TOKENIZER_CONFIG, "pad_token": TOKENIZER_CONFIG["eos_token"]}
    plan = make_plan(load(write_hf(tmp_path, hf_recipe(), {"model/tokenizer_config.json": padded})))
    assert not plan.errors
    assert [one for one in plan.findings if "nothing is padded, and the end token is learned" in one.message]


ALLOWED: dict[str, dict[str, Any]] = {
    "columns that change places": {"instructions.columns": {"input": "output", "output": "input"}},
    "roles": {"instructions.roles": {"user": "person", "assistant": "assistant"}},
    "a cache that is not there": {"instructions.cache": "new/folder"},
    "targets by path": {"fine_tune.lora.targets": ["layers.0.self_attn.q_proj", "embed_tokens"]},
    "all linear": {"fine_tune.lora.targets": ["all-linear"]},
    "4 bits": {"huggingface.quantization": "nf4", "fine_tune.lora.targets": ["all-linear"]},
    "all positions": {"instructions.max_seq_length": 128},
    "virtual tokens that fit": {"fine_tune": {"method": "p-tuning", "virtual_tokens": {"count": 64}}},
    "zero3": {"fine_tune.method": "full", "sharding": {"strategy": "zero3", "offload": "all", "nvme": "/scratch"}},
}


@pytest.mark.parametrize("changes", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_is_allowed(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(load(write_hf(tmp_path, hf_recipe(changes))))
    assert [str(one) for one in plan.errors] == []


@pytest.mark.parametrize("opens", [False, True])
def test_a_template_that_does_not_tell_where_answers_begin_is_told(opens: bool, tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant: {% endif %}" if opens else ""
    recipe = hf_recipe({"instructions.chat_template": "t.jinja", "instructions.template": "chat"})
    plan = make_plan(load(write_hf(tmp_path, recipe, {"t.jinja": text})))
    assert not plan.errors
    told = [one for one in plan.findings if "has neither add_generation_prompt nor {% generation %}" in one.message]
    assert len(told) == (0 if opens else 1)


@pytest.mark.parametrize("end", ["config", "map", "class"])
def test_an_end_token_may_be_named_in_several_places(end: str, tmp_path: Path) -> None:
    without = {key: value for key, value in TOKENIZER_CONFIG.items() if key != "eos_token"}
    files: dict[str, Content] = {
        "config": {"model/tokenizer_config.json": {**without, "eos_token": {"content": "</s>", "special": True}}},
        "map": {"model/tokenizer_config.json": without, "model/special_tokens_map.json": {"eos_token": "</s>"}},
        "class": {"model/tokenizer_config.json": {**without, "tokenizer_class": "LlamaTokenizer"}},
    }[end]  # type: ignore[assignment]
    plan = make_plan(load(write_hf(tmp_path, hf_recipe(), files)))
    assert [str(one) for one in plan.errors] == []


def test_there_are_more_than_a_hundred_and_they_differ() -> None:
    assert len(HF_CASES) > 100
    assert len({case.id for case in HF_CASES}) == len(HF_CASES)


@pytest.mark.parametrize("case", HF_CASES, ids=lambda case: case.id)
def test_one_message_with_place_and_fix(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = refusal(case, tmp_path)
    message = "\n".join(lines)
    for line in lines:
        assert SHAPE.fullmatch(line), line
        assert FIX.search(line), f"no fix: {line}"
        assert line.isprintable(), line
        assert len(line) < 1000
    for expected in case.expected:
        assert expected in message, message
    assert len(lines) == case.faults, message


@pytest.mark.parametrize("case", HF_CASES[::9], ids=lambda case: case.id)
def test_nothing_is_submitted(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"something was submitted: {arguments}")

    monkeypatch.setattr(submitting, "start", refuse)
    monkeypatch.chdir(tmp_path)
    recipe = case.build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["submit", str(recipe), "--runs-dir", str(tmp_path / "runs")]) in (2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
