"""What a row of instructions is as tokens, and which of them are learned: against transformers' own mask, Stanford
Alpaca's arithmetic, and the prompts of LLaMA-Factory and axolotl."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclm.core.errors import DataError
from hpclm.core.fine_tune_spec import InstructionData
from hpclm.data.instructions.instruction_records import Record, record
from hpclm.data.ranks.instruction_tokens import InstructionEncoder, TokenRow
from tests.support.hf_tokenizers import KINDS, tokenizer

made = cache(tokenizer)
CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ (first if loop.first else '') + m.content }} [/INST]"
    "{% else %}{% generation %} {{ m.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
)
# Thoughts of earlier turns are left out, and the last turn always has them.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDS = {CHATML: "<|im_end|>", LLAMA3: "<|eot_id|>", MISTRAL: "</s>", THINKING: "<|im_end|>"}
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL}
ANSWERS = [
    "Paris.",
    "  two spaces first",
    "你好，世界",
    "🙂👩‍👩‍👧 ok",
    "def f(x):\n    return x\n\n\n        pass",
    "\nline",
]
CHAT_ROWS: dict[str, list[dict[str, str]]] = {
    **{
        f"answer {number}": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]
        for number, text in enumerate(ANSWERS)
    },
    "several turns": [
        {"role": role, "content": text}
        for role, text in zip(
            itertools.cycle(("user", "assistant")), ["Hi", "Hello", "翻译", "答案", "?", " x"], strict=False
        )
    ],
    "system": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "No"},
    ],
}


def encoder(kind: Any = "bytes", template: Any = "stanford", chat: str | None = None, **how: Any) -> InstructionEncoder:
    learn = {key: how.pop(key) for key in ("learn", "system") if key in how}
    found = made(kind, **({"end": ENDS[chat]} if chat else {}), **how)
    found.chat_template = chat
    return InstructionEncoder(found, InstructionData(template=template, **learn))


def without_marks(template: str) -> str:
    """A template that writes the same and says nothing of it."""
    found = template.replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    ENDS[found] = ENDS[template]
    return found


def encode(with_: InstructionEncoder, row: dict[str, Any], where: str = "rows.jsonl:7") -> TokenRow:
    (found,) = with_.rows([record(row, where, with_.data, learns=True)])
    return found


def learned_text(with_: InstructionEncoder, row: TokenRow) -> str:
    ids = [token for token, learned in zip(row.tokens, row.learned, strict=True) if learned]
    text: str = with_.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


# ---- chat templates: transformers' own mask


@pytest.mark.parametrize("messages", CHAT_ROWS.values(), ids=CHAT_ROWS.keys())
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_template_without_marks_is_learned_as_with_them(
    kind: str, template: str, messages: list[dict[str, str]]
) -> None:
    text = TEMPLATES[template]
    unmarked = without_marks(text)
    row = {"messages": messages}
    wanted = encode(encoder(kind, "chat", text), row)
    assert encode(encoder(kind, "chat", unmarked), row) == wanted
    last = [encode(encoder(kind, "chat", one, learn="last-answer"), row) for one in (text, unmarked)]
    assert last[0] == last[1]


def test_marks_are_followed_where_nothing_else_tells() -> None:
    text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    )
    text = text.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}").replace(
        "{% endgeneration %}",
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}",
    )
    ENDS[text] = "<|im_end|>"
    with_ = encoder("bytes", "chat", text)
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b"}]}
    assert learned_text(with_, encode(with_, row)) == "a b<|im_end|>"


@pytest.mark.parametrize("learn", ["answers", "last-answer"])
@pytest.mark.parametrize("form", ["macro", "two marks", "comment"])
def test_marks_that_are_not_an_answers_place_are_passed_over(form: str, learn: str) -> None:
    text = {
        "macro": "{% macro said(m) %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endmacro %}"
        + CHATML.replace("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}", "{{ said(m) }}"),
        "two marks": CHATML.replace("}}<|im_end|>{%", "}}{% endgeneration %}{% generation %}<|im_end|>{%"),
        "comment": "{# no {% generation %} here #}" + without_marks(CHATML),
    }[form]
    ENDS[text] = "<|im_end|>"
    row = {"messages": CHAT_ROWS["system"]}
    said = [
        learned_text(one, encode(one, row))
        for one in (encoder("bytes", "chat", t, learn=learn) for t in (CHATML, text))
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("learn", ["answers", "last-answer"])
def test_a_chat_may_begin_with_an_answer(learn: str) -> None:
    unmarked = without_marks(CHATML)
    messages = [{"role": role, "content": role} for role in ("assistant", "user", "assistant")]
    rows = [encode(encoder("bytes", "chat", one, learn=learn), {"messages": messages}) for one in (CHATML, unmarked)]
    assert rows[0] == rows[1]
    assert any(rows[0].learned)


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]
    with_ = encoder("bytes", "chat", CHATML)
    answer = {"role": "assistant", "content": "So."}
    wanted = encode(with_, {"messages": [{"role": "user", "content": "Why so?"}, answer]})
    assert encode(with_, {"messages": [{"role": "user", "content": parts}, answer]}).tokens == wanted.tokens
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    for message, words in (
        ({"role": "user", "content": image}, r"message 1 has a part that is no text \(image_url\)"),
        ({"role": "assistant", "content": None, "tool_calls": [{}]}, r"message 1 calls tools"),
    ):
        with pytest.raises(ValueError, match=words):
            encode(with_, {"messages": [message, answer]})


@pytest.mark.parametrize("messages", CHAT_ROWS.values(), ids=CHAT_ROWS.keys())
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_is_what_transformers_masks(kind: str, template: str, messages: list[dict[str, str]]) -> None:
    with_ = encoder(kind, "chat", TEMPLATES[template])
    theirs = with_.tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    row = encode(with_, {"messages": messages})
    assert row.tokens == list(theirs["input_ids"])
    # transformers finds the tokens at a span's ends: where trimmed offsets say that these are nowhere, it has none
    if kind != "bytes-trimmed":
        assert [int(one) for one in row.learned] == list(theirs["assistant_masks"])
    ends = [place for place, token in enumerate(row.tokens) if token == with_.end and row.learned[place]]
    assert len(ends) == sum(one["role"] == "assistant" for one in messages)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_input_of_a_row_is_below_its_instruction(template: str) -> None:
    with_ = encoder("bytes", "chat", TEMPLATES[template])
    row = encode(with_, {"instruction": "Translate.", "input": "你好", "output": "Hello"})
    messages = [{"role": "user", "content": "Translate.\n你好"}, {"role": "assistant", "content": "Hello"}]
    assert row.tokens == list(with_.tokenizer.apply_chat_template(messages)["input_ids"])
    assert learned_text(with_, row).strip() == f"Hello{ENDS[TEMPLATES[template]]}"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_is_the_beginning_of_its_row(template: str) -> None:
    """What a model is asked in an evaluation is what it learned to answer."""
    with_ = encoder("bytes", "chat", TEMPLATES[template])
    one = record({"messages": CHAT_ROWS["system"]}, "", with_.data, learns=True)
    _, prompt = with_.prompt(one)
    (row,) = with_.rows([one])
    # as text: the line breaks before an answer may be one token alone, and two before a word
    whole, asked = with_.tokenizer.decode(row.tokens), with_.tokenizer.decode(prompt)
    assert whole.startswith(asked)
    assert whole[len(asked) :].strip() == f"No{ENDS[TEMPLATES[template]]}"


def test_the_last_answer_alone() -> None:
    with_ = encoder("bytes", "chat", CHATML, learn="last-answer")
    assert learned_text(with_, encode(with_, {"messages": CHAT_ROWS["system"]})) == "No<|im_end|>"


def test_everything_is_learned_where_the_recipe_says_so() -> None:
    with_ = encoder("bytes", "chat", CHATML, learn="everything")
    row = encode(with_, {"messages": CHAT_ROWS["system"]})
    assert all(row.learned)
    assert row.tokens == list(with_.tokenizer.apply_chat_template(CHAT_ROWS["system"])["input_ids"])


def test_a_template_that_rewrites_earlier_turns_is_refused_or_handled() -> None:
    with_ = encoder("bytes", "chat", THINKING)
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: .*message 3 differently.*learn: last-answer") as found:
        encode(with_, {"messages": CHAT_ROWS["system"]})
    assert "\n" not in str(found.value)
    with_ = encoder("bytes", "chat", THINKING, learn="last-answer")
    assert (
        learned_text(with_, encode(with_, {"messages": CHAT_ROWS["system"]})) == "<think>\n\n</think>\n\nNo<|im_end|>"
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "give another"),
        ("{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}", "give another"),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "give another"),
        ("{{ raise_exception('no\nway') }}", "refuses it (TemplateError: no way); "),
        ("{% for m in messages %}", "refuses it (TemplateSyntaxError"),
        ("{{ messages[9].content }}", "refuses it (UndefinedError"),
        ("{{ 1 / 0 }}", "refuses it (ZeroDivisionError"),
    ],
    ids=["counts", "reversed", "forgets", "raises", "broken", "undefined", "divides"],
)
@pytest.mark.parametrize("learn", ["answers", "last-answer"])
def test_a_template_that_hides_what_is_learned_is_refused(template: str, said: str, learn: str) -> None:
    with_ = encoder("bytes", "chat", CHATML, learn=learn)
    with_.tokenizer.chat_template = template
    with pytest.raises(DataError) as found:
        encode(with_, {"messages": CHAT_ROWS["several turns"][:2]})
    message = str(found.value)
    assert message.startswith("rows.jsonl:7: ")
    assert said in message
    assert message.isprintable()
    assert "learn: last-answer" not in message  # which would not help


def test_a_role_that_a_template_does_not_know_is_refused_with_its_row() -> None:
    with_ = encoder("bytes", "chat", MISTRAL)
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the chat template refuses it .*roles must alternate"):
        encode(with_, {"messages": twice})


def test_an_answer_that_the_template_does_not_end_is_ended() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    ENDS[plain] = "</s>"
    with_ = encoder("bytes", "chat", plain)
    row = encode(with_, {"messages": CHAT_ROWS["system"]})
    assert row.tokens[-1] == with_.end
    assert row.learned[-1]
    assert learned_text(with_, row) == "So.\nNo\n</s>"


def test_no_template_no_end_token_no_offsets_are_refused() -> None:
    with pytest.raises(DataError, match=r"no chat template; give .*, or choose"):
        encoder("bytes", "chat", None)
    bare = tokenizer()
    bare.eos_token = None
    with pytest.raises(DataError, match="no end token; add eos_token"):
        InstructionEncoder(bare, InstructionData(template="stanford"))


# ---- text: Stanford Alpaca's arithmetic

WITH = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA = [
    {"instruction": instruction, "input": about, "output": answer}
    for instruction, about in (("Translate.", ""), ("翻译 下面", "你好 🙂"), ("  spaces ", "line\n\nline "))
    for answer in ANSWERS
]
TOKENIZERS = [(kind, bos, eos) for kind in KINDS for bos in (False, True) for eos in (False, True)]


def stanford(tokens: Any, row: dict[str, str], between: str = "") -> tuple[list[int], int]:
    """Tokens, and how many of them are the source, as in stanford_alpaca's train.py (preprocess)."""
    source = (WITH if row["input"] else WITHOUT).format_map(row) + between
    whole = tokens(source + row["output"] + tokens.eos_token)["input_ids"]
    length = len(tokens(source)["input_ids"])
    if tokens(source)["input_ids"][-1] == tokens.eos_token_id:  # of a tokenizer that ends texts itself
        whole, length = tokens(source + row["output"])["input_ids"], length - 1
    return whole, length


@pytest.mark.parametrize("row", ALPACA, ids=range(len(ALPACA)))
@pytest.mark.parametrize(("kind", "bos", "eos"), TOKENIZERS)
@pytest.mark.parametrize(("template", "between"), [("stanford", ""), ("axolotl", "\n")])
def test_stanford_and_axolotl(
    kind: str, bos: bool, eos: bool, template: str, between: str, row: dict[str, str]
) -> None:
    with_ = encoder(kind, template, bos=bos, eos=eos)
    whole, length = stanford(with_.tokenizer, row, between)
    found = encode(with_, row)
    assert found.tokens == whole
    assert found.learned[-1]
    assert found.tokens[-1] == with_.end
    assert found.tokens.count(with_.end) == 1
    first = found.learned.index(True)
    assert all(found.learned[first:])
    if not found.joined:
        assert first == length
    else:  # a token of both is learned: lengths would have masked it, or learned a token of the prompt
        assert first <= length


def test_a_token_of_prompt_and_answer_is_counted_and_learned() -> None:
    with_ = encoder("bytes", "axolotl")
    found = encode(with_, {"instruction": "x", "output": "\n\n\n   indented"})
    text = learned_text(with_, found)
    assert text.endswith("   indented</s>")
    assert found.joined == (not text.startswith("\n\n\n ") or text.startswith("\n\n\n\n"))


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_inside_an_answer_is_learned(kind: str) -> None:
    """Offsets of some tokenizers leave it out; what is learned is the whole answer all the same."""
    with_ = encoder(kind)
    answer = "if x:\n\n        return  y   \n"
    found = encode(with_, {"instruction": "Indent.", "output": answer})
    assert learned_text(with_, found).removesuffix("</s>").strip() == answer.strip()
    assert all(found.learned[found.learned.index(True) :])


@pytest.mark.parametrize("row", ALPACA, ids=range(len(ALPACA)))
@pytest.mark.parametrize("kind", KINDS)
def test_llama_factorys_alpaca(kind: str, row: dict[str, str]) -> None:
    """Its user turn is instruction and input, one system text, and an answer ends with the end token and two line
    breaks, which it learns too (data/template.py, register_template name="alpaca")."""
    with_ = encoder(kind, "llama-factory")
    found = encode(with_, row)
    asked = f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]
    head = WITHOUT.partition("### Instruction")[0]
    text = f"{head}### Instruction:\n{asked}\n\n### Response:\n{row['output']}</s>\n\n"
    assert found.tokens == with_.tokenizer(text)["input_ids"]
    assert learned_text(with_, found).strip() == f"{row['output'].strip()}</s>"
    assert with_.end is not None
    assert found.learned[found.tokens.index(with_.end)]
    assert found.learned[-1]


def test_history_is_learned_by_llama_factorys_template_unless_the_last_answer_is_asked_for() -> None:
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "S"}
    with_ = encoder("bytes", "llama-factory")
    assert learned_text(with_, encode(with_, row)) == "b</s>\n\nd</s>\n\n"
    with_ = encoder("bytes", "llama-factory", learn="last-answer")
    assert learned_text(with_, encode(with_, row)) == "d</s>\n\n"
    open_end = {"messages": [*CHAT_ROWS["system"], {"role": "user", "content": "?"}]}
    assert learned_text(with_, encode(with_, open_end)) == "No</s>\n\n"


def test_a_plain_row_is_its_text() -> None:
    with_ = encoder("bytes", "plain")
    found = encode(with_, {"prompt": "2+2=", "completion": "4"})
    assert with_.tokenizer.decode(found.tokens) == "2+2=4</s>"
    assert learned_text(with_, found) == "4</s>"


@pytest.mark.parametrize(("kind", "bos", "eos"), TOKENIZERS)
@pytest.mark.parametrize("template", ["stanford", "axolotl", "llama-factory", "plain"])
def test_a_prompt_of_text_is_open(kind: str, bos: bool, eos: bool, template: str) -> None:
    """No end token before the answer, whatever the tokenizer adds."""
    with_ = encoder(kind, template, bos=bos, eos=eos)
    one = record({"instruction": "a b", "output": "Paris"}, "", with_.data, learns=True)
    text, tokens = with_.prompt(one)
    assert with_.end not in tokens
    (row,) = with_.rows([one])
    assert with_.tokenizer.decode(row.tokens, skip_special_tokens=True).startswith(
        with_.tokenizer.decode(tokens, skip_special_tokens=True).rstrip()
    )
    assert (tokens[0] == with_.tokenizer.bos_token_id) == bos
    assert text.endswith({"stanford": "Response:", "plain": "a b"}.get(template, "Response:\n"))


WORDS = st.text(
    alphabet=st.one_of(st.sampled_from("ab \n\t.:#你好🙂é"), st.characters(codec="utf-8")), min_size=1, max_size=20
).filter(lambda text: text.strip() and "<" not in text)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TOKENIZERS), st.sampled_from(["stanford", "axolotl", "llama-factory", "plain"]), WORDS, WORDS, WORDS
)
def test_every_answer_is_learned_whole_and_no_prompt(
    which: tuple[Any, bool, bool], template: str, instruction: str, about: str, answer: str
) -> None:
    kind, bos, eos = which
    with_ = encoder(kind, template, bos=bos, eos=eos)
    about = "" if template == "plain" else about
    found = encode(with_, {"instruction": instruction, "input": about, "output": answer})
    assert found.learned[-1]
    assert with_.end in found.tokens
    first = found.learned.index(True)
    assert all(found.learned[first:])
    text = _prompt_text(with_, instruction, about)
    prompt = with_.tokenizer(text, add_special_tokens=False)["input_ids"]
    # tokens differ only where the answer's beginning and the prompt's end are one
    assert first <= len(prompt) + bos + 8
    assert found.tokens[int(bos) : first][:1] == prompt[:1] or first == int(bos)


def _prompt_text(with_: InstructionEncoder, instruction: str, about: str) -> str:
    row = {"instruction": instruction, "input": about}
    return with_.prompt(record(row, "", with_.data, learns=False))[0]


@pytest.mark.parametrize("template", ["stanford", "llama-factory"])
def test_rows_are_encoded_the_same_alone_and_in_batches(template: str) -> None:
    with_ = encoder("bytes", template)
    rows = [record(row, str(number), with_.data, learns=True) for number, row in enumerate(ALPACA * 40)]
    together = list(with_.rows(rows))
    assert [row.where for row in together] == [row.where for row in rows]
    alone = [encode(with_, row, str(number)) for number, row in enumerate(ALPACA)]
    assert together[: len(alone)] == alone


def test_a_slow_tokenizer_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast, name_or_path = False, "model"

    with pytest.raises(DataError, match=r"no tokenizer\.json.*convert it"):
        InstructionEncoder(Slow(), InstructionData())


def test_a_record_is_not_changed() -> None:
    with_ = encoder("bytes", "chat", CHATML)
    one: Record = record({"instruction": "a", "input": "b", "output": "c"}, "", with_.data, learns=True)
    before = repr(one)
    list(with_.rows([one]))
    with_.prompt(one)
    assert repr(one) == before
