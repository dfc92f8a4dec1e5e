"""Replies of models as they come: what is a row in them, and that nothing in them breaks the reader."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclm.data.generation.instruction_rows import InstructionRow
from hpclm.data.generation.reply_parsing import parse_reply

TWO = """\
###
4. Instruction: Name three colours of the rainbow.
4. Input:
<noinput>
4. Output:
Red, green and blue.

###
5. Instruction: Translate the sentence into French.
5. Input:
I am hungry.
5. Output:
J'ai faim.
"""
ROWS = [
    InstructionRow("Name three colours of the rainbow.", "", "Red, green and blue."),
    InstructionRow("Translate the sentence into French.", "I am hungry.", "J'ai faim."),
]


def test_the_rows_of_a_reply() -> None:
    parsed = parse_reply(TWO, "stop")
    assert (parsed.rows, parsed.malformed, parsed.truncated) == (ROWS, 0, False)


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here are more tasks:\n\n" + TWO,
        "<think>\n4. Instruction: a plan\n4. Output: none\n</think>\n" + TWO,
        re.sub(r"(\d\. \w+):", r"**\1:**", TWO),
        re.sub(r"(\d\. \w+):", r"### \1:", TWO),
        TWO.replace("###\n", ""),
        TWO.replace("Input:\n", "Input: ").replace("Output:\n", "Output: "),
        TWO.replace("\n", "\r\n"),
        TWO.replace("4.", "1.").replace("5.", "2."),
        TWO.replace("<noinput>", "<No input>"),
        TWO + "###\nThat is all I have. Shall I go on?",
    ],
    ids=["chatter", "thinking", "bold", "headings", "no separators", "one line", "crlf", "numbers", "no input", "end"],
)
def test_forms_that_chat_models_give(text: str) -> None:
    assert parse_reply(text, "stop").rows == ROWS


def test_chinese_words_for_the_parts() -> None:
    text = "###\n4. 指令：把下面的句子翻译成英语。\n4. 输入：\n我饿了。\n4. 输出：\nI am hungry.\n"
    assert parse_reply(text, "stop").rows == [InstructionRow("把下面的句子翻译成英语。", "我饿了。", "I am hungry.")]


def test_an_answer_may_have_lists_and_headings() -> None:
    output = "### Steps\n1. Input: take the number\n2. Output: double it\n3. Instruction: none\n20. Done"
    text = f"###\n4. Instruction: Describe how to double it.\n4. Input:\n<noinput>\n4. Output:\n{output}\n"
    assert parse_reply(text, "stop").rows == [InstructionRow("Describe how to double it.", "", output)]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_last_row_that_was_cut_off_is_left_out(reason: str) -> None:
    cut = parse_reply(TWO, reason)
    assert (cut.rows, cut.truncated) == (ROWS[:1], True)
    # what a separator ends is whole
    ended = parse_reply(TWO + "###\n", reason)
    assert (ended.rows, ended.truncated) == (ROWS, False)


@pytest.mark.parametrize(
    ("text", "rows", "malformed"),
    [
        ("", 0, 1),
        ("I cannot help with that.", 0, 1),
        (TWO.replace("4. Output:", "Answer:"), 1, 1),
        (TWO.replace("J'ai faim.", ""), 1, 1),
        (TWO.replace("Name three colours of the rainbow.", ""), 1, 1),
        ("4. Instruction: only this", 0, 1),
    ],
)
def test_rows_that_lack_a_part_are_counted(text: str, rows: int, malformed: int) -> None:
    parsed = parse_reply(text, "stop")
    assert (len(parsed.rows), parsed.malformed) == (rows, malformed)


PIECES = st.sampled_from(
    [
        *("###", "####", "\n", "\r\n", "4. Instruction:", "4. Input:", "4. Output:", "5. Instruction: x"),
        *(
            "5. Output: y",
            " ",
            "**",
            "<noinput>",
            "指令：",
            "9. 输出：z",
            "4。",
            "\u2028",
            "\x00",
            "<think>",
            "</think>",
        ),
    ]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=60), st.sampled_from(["stop", "length", None, "odd"]))
def test_any_text_gives_sound_rows(pieces: list[str], reason: str | None) -> None:
    text = "".join(pieces).replace("\r\n", "\n")
    parsed = parse_reply(text, reason)
    for row in parsed.rows:
        assert row.instruction.strip() == row.instruction != ""
        assert row.output.strip() == row.output != ""
        assert row.instruction in text
        assert row.output in text
    assert parsed.rows or parsed.malformed or parsed.truncated
    # no row is made up by cutting: the whole reply has at least as many
    assert len(parse_reply(text, "length").rows) <= len(parse_reply(text, "stop").rows)


PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).map(str.strip).filter(bool)


@given(st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=6))
def test_what_is_written_in_the_form_is_read_back(rows: list[tuple[str, str, str]]) -> None:
    text = "".join(
        f"###\n{number}. Instruction: {one}\n{number}. Input:\n{two}\n{number}. Output:\n{three}\n"
        for number, (one, two, three) in enumerate(rows, 4)
    )
    if any(line.strip().startswith(("#", "<", "无")) or line.strip()[:1].isdigit() for row in rows for line in row):
        return  # it looks like the form itself
    assert parse_reply(text, "stop").rows == [
        InstructionRow(one, "" if re.fullmatch(r"no ?input", two, re.IGNORECASE) else two, three)
        for one, two, three in rows
    ]


def test_a_long_reply_is_read_in_a_moment() -> None:
    parse_reply("4. Instruction: " * 200_000, "stop")
    parse_reply(" " * 10**6 + "#" * 10**6 + "\n" * 10**5, "length")
