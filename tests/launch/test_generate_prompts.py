"""`hpclm generate`: what is no prompt, or asks for two things at once, is said before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclm import cli
from hpclm.cli.generate_command import _prompts_in
from hpclm.core.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"one\n\nthree\n", ":2: an empty prompt; remove it"),
        ("a.txt", b"one\nb\xe9d\n", ":2: not UTF-8 at byte 1 of the line"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt": 2}\n', ":2: not an object with a text called prompt"),
        ("a.jsonl", b'{"prompt": "one"}\n{"prompt"\n', ":2: not JSON"),
        ("a.jsonl", b"[" * 100_000, ":1: not JSON"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}{words}"):
        _prompts_in(tmp_path / name)


def test_prompts_keep_their_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"def f(x): \r\n  two  \n\n")
    assert _prompts_in(tmp_path / "a.txt") == ["def f(x): ", "  two  "]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "0.5"], "--temperature has no effect on the likeliest tokens; add --sample"),
        (["--top-k", "5"], "--top-k has no effect on the likeliest tokens; add --sample"),
        (["--min-new-tokens", "10", "--max-new-tokens", "5"], "--min-new-tokens 10 is more than --max-new-tokens 5"),
        (["--file", "EMPTY"], "empty.txt: contains no prompt"),
    ],
)
def test_what_contradicts_itself_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    given = [str(tmp_path / "empty.txt") if word == "EMPTY" else word for word in words]
    prompt = [] if "--file" in given else ["def f():"]
    assert cli.run(["generate", str(tmp_path / "model"), *prompt, *given]) != 0
    assert said in capsys.readouterr().err
