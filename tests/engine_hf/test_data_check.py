"""`hpclm data check` for rows of instructions: what is cut, left out and learned, the end token included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.planning import row_report
from tests.support.hf_broken_files import hf_recipe, put, write_hf
from tests.support.hf_models import save_tokenizer
from tests.support.samples import DROP

STAGES = [
    {"name": "tune", "task": "fine-tune", "engine": "hf"},
    {"name": "ask", "task": "evaluate", "engine": "hf", "base": "tune"},
]
ROWS: list[dict[str, Any]] = [
    {"instruction": "Repeat the words.", "input": "path name", "output": "path name"},
    {"instruction": "path " * 30, "output": "name"},
    {"instruction": "Swap the words.", "output": "name " * 30},
    {"messages": [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe of two stages on a model with a tokenizer of 424 tokens."""
    changes = {"stages": STAGES, "task": DROP, "engine": DROP, "instructions.test": ["test.jsonl"],
               "instructions.max_seq_length": 32, "generation": {"max_new_tokens": 4}}  # fmt: skip
    write_hf(tmp_path, hf_recipe(changes), {"train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS)})
    save_tokenizer(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    put(tmp_path / "model" / "config.json", {**config, "vocab_size": 424})
    return tmp_path


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert cli.run(["data", "check", str(folder / "recipe.yaml"), "--json", *arguments]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["files"]
    return found


def test_what_becomes_of_every_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, validation, test = checked(folder, capsys)
    assert [(one["stage"], one["role"]) for one in (train, validation, test)] == [
        ("tune", "train"), ("tune", "validation"), ("ask", "test"),
    ]  # fmt: skip
    (file,) = train["files"]
    assert {key: file[key] for key in ("rows", "kept", "cut", "without_label", "too_long", "longest", "ended")} == {
        "rows": 4, "kept": 3, "cut": 2, "without_label": 1, "too_long": 0, "longest": 32, "ended": 2,
    }  # fmt: skip
    assert file["examples"] == [f"{folder}/train.jsonl:2"]
    assert train["samples"] is None
    assert test["files"][0]["kept"] == 16


def test_rows_are_shown_with_what_is_learned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, *_ = checked(folder, capsys, "--examples", "4")
    whole, unlearned, cut, turns = train["shown"]
    assert whole["text"] == (
        "<|im_start|>user\nRepeat the words.\npath name<|im_end|>\n<|im_start|>assistant\n⟦path name<|im_end|>⟧\n"
    )
    assert whole["note"] == ""
    assert (unlearned["note"], unlearned["learned"]) == ("left out: nothing to learn", 2)
    assert cut["note"].startswith("cut: ")
    assert cut["tokens"] == 32
    assert cut["text"].endswith("name⟧")
    assert turns["text"].count("⟦assistant<|im_end|>⟧") == 2


def test_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[31mred\x07"
    put(folder / "train.jsonl", json.dumps({"instruction": text, "output": "name"}) + "\n")
    settings = ("instructions.packing=true", "instructions.template=stanford", "instructions.max_seq_length=120")
    assert cli.run(["data", "check", str(folder / "recipe.yaml"), *settings, "--stage", "tune"]) == 0
    out = capsys.readouterr().out
    assert "tune train: 1 rows, template stanford, learn answers, at most 120 tokens" in out
    assert "packing: 1 rows in 1 samples of 120 tokens" in out
    assert "end token <|im_end|>: learned in 1 of 1 rows; pad token <|pad|>: nothing is padded" in out
    assert "### Response:⟦name<|im_end|>⟧" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "red" in out


def test_marks_that_leave_the_end_token_out_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "marks.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    template = f"instructions.chat_template={folder / 'marks.jinja'}"
    assert cli.run(["data", "check", str(folder / "recipe.yaml"), template, "--stage", "tune"]) == 0
    out = capsys.readouterr().out
    assert "learned in 0 of" in out
    assert "warning: the model does not learn where to stop" in out


def test_rows_of_an_evaluation_are_prompts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (test,) = checked(folder, capsys, "--stage", "ask", "--examples", "1")
    (row,) = test["shown"]
    assert row["text"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "⟦" not in row["text"]


def test_packing_is_of_all_files_of_a_role(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = json.dumps({"instruction": "path", "output": "name"}) + "\n"
    for name in ("a", "b"):
        put(folder / f"{name}.jsonl", short)
    train, _ = checked(
        folder, capsys, "--stage", "tune", "instructions.packing=true",
        f"instructions.train=[{folder}/a.jsonl, {folder}/b.jsonl]",
    )  # fmt: skip
    assert train["samples"] == 1
    assert [file["kept"] for file in train["files"]] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("instructions.too_long=refuse",), "train.jsonl:2: has"),
        (("instructions.template=plain",), "train.jsonl:1: has an input"),
        (("--stage", "tuen"), "no stage 'tuen' with rows; stages with rows: tune, ask"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_message(
    settings: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["data", "check", str(folder / "recipe.yaml"), *settings]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_a_tokenizer_that_cannot_be_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = json.loads((folder / "model" / "tokenizer.json").read_text())
    put(folder / "model" / "tokenizer.json", {**written, "pre_tokenizer": {"type": "Telepathy"}})
    assert cli.run(["data", "check", str(folder / "recipe.yaml")]) != 0
    err = capsys.readouterr().err
    assert f"{folder}/model: its tokenizer cannot be loaded" in err
    assert "Traceback" not in err


def test_a_machine_without_transformers_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_report, "find_spec", lambda name: None if name == "transformers" else object())
    assert cli.run(["data", "check", str(folder / "recipe.yaml")]) != 0
    assert "install hpclm[hf], or check them in the stage's image" in capsys.readouterr().err
