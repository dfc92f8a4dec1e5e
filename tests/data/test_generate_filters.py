"""Which rows stay: the published filters, for every script, and similarity as rouge-score has it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpclm.data.generation.generation_words import USUAL, Filter
from hpclm.data.generation.instruction_rows import InstructionRow
from hpclm.data.generation.row_filters import WORDS, RowFilters
from hpclm.data.generation.similarity import SimilarityIndex, common_length, f_measure, tokens_of, word_count


def filters(active: tuple[Filter, ...] = USUAL, drop_words: tuple[str, ...] = ()) -> RowFilters:
    return RowFilters(active, (4, 150), drop_words, 0.7)


def row(instruction: str, given: str = "") -> InstructionRow:
    return InstructionRow(instruction, given, "An answer.")


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Explain the word.", "length"),
        ("word " * 151, "length"),
        ("Describe the image in one sentence.", "words"),
        ("Please Go To the shop for me.", "words"),
        ("Write a program that adds two numbers.", "program"),
        ("- Explain why the sky is blue", "punctuation"),
        ("🙂 Explain why the sky is blue", "punctuation"),
        ("，解释天空为什么是蓝色的", "punctuation"),
        ("写诗。", "length"),
        ("字" * 151, "length"),
    ],
)
def test_what_is_left_out_and_how_each_filter_is_switched_off(instruction: str, reason: str) -> None:
    assert filters().dropped_by(row(instruction)) == reason
    others = tuple(one for one in USUAL if one.value != reason)
    assert filters(others).dropped_by(row(instruction)) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "Explain why the sky is blue.",
        "Draws and imagery are no listed words here.",
        "把下面的句子翻译成英语。",
        "请写一首关于秋天的五言绝句",
        "「平和」という言葉を説明してください",
        "Объясни, почему небо голубое.",
        "¿Por qué el cielo es azul?",
        "اشرح لماذا السماء زرقاء",
        "อธิบายว่าทำไมท้องฟ้าเป็นสีฟ้า",
        "하늘이 왜 파란지 설명해 주세요",
        "5 plus 7 makes which number?",
        "word " * 150,
    ],
)
def test_every_script_stays(instruction: str) -> None:
    assert filters().dropped_by(row(instruction)) is None


def test_the_published_filter_that_drops_chinese_is_there_for_those_who_ask() -> None:
    asked = filters((*USUAL, Filter.non_ascii))
    assert asked.dropped_by(row("把下面的句子翻译成英语。")) == "non-ascii"
    assert asked.dropped_by(row("Translate 你好 into English now.")) is None


def test_listed_words_are_whole_words_and_ones_own_are_added() -> None:
    for word in WORDS:
        assert filters().dropped_by(row(f"Now please {word.upper()} it")) == "words"
    added = filters(drop_words=("图片", "c++"))
    assert added.dropped_by(row("请描述这张图片里的人物")) == "words"
    assert added.dropped_by(row("请描述这篇文章里的人物")) is None


def test_equal_rows_go_even_without_the_similarity() -> None:
    kept = filters(())
    kept.add(row("Explain why the sky is blue.", "Sky"))
    assert kept.dropped_by(row("Explain  why the SKY is blue.", "sky ")) == "duplicate"
    assert kept.dropped_by(row("Explain why the sky is blue.", "Sea")) is None


@pytest.mark.parametrize(
    ("first", "second", "is_similar"),
    [
        ("Explain why the sky is blue today.", "Explain why the sky is blue now.", True),
        ("Explain why the sky is blue.", "Name the capital of France.", False),
        ("请解释天空为什么是蓝色的。", "请解释一下天空为什么是蓝色的？", True),
        ("请解释天空为什么是蓝色的。", "写一首关于秋天的诗。", False),
    ],
)
def test_an_instruction_too_similar_to_an_earlier_one(first: str, second: str, is_similar: bool) -> None:
    kept = filters()
    kept.add(row(first))
    assert kept.dropped_by(row(second, "another input")) == ("similar" if is_similar else None)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("one two  three\nfour", 4),
        ("rock'n'roll, well-known", 2),
        ("写一首诗。", 4),
        ("用 Python 写程序", 5),
        ("用Python写程序", 5),
        ("３月、４月", 4),
        ("カタカナ", 4),
        ("한국어 문장", 2),
    ],
)
def test_words_are_counted_by_spaces_or_by_characters(text: str, count: int) -> None:
    assert word_count(text) == count


def rouge_l() -> Callable[[str, str], float]:
    """rouge-score's own figure, on tokens of every script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
        from rouge_score.tokenizers import Tokenizer  # type: ignore[import-untyped]

    class Ours(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return tokens_of(text)

    scorer = RougeScorer(["rougeL"], tokenizer=Ours())
    return lambda target, made: float(scorer.score(target, made)["rougeL"].fmeasure)


PARTS = [*"天地人大小的，。 ", "the ", "Cat ", "it's ", "mat "]
MIXED = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)


@given(MIXED, MIXED)
def test_the_figure_is_rouge_scores_to_the_bit(first: str, second: str) -> None:
    one, two = tokens_of(first), tokens_of(second)
    assert f_measure(common_length(one, two), len(one), len(two)) == rouge_l()(first, second)


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_english_tokens_are_rouge_scores(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_score.tokenize import tokenize  # type: ignore[import-untyped]
    assert tokens_of(text) == tokenize(text, None)


def test_chinese_texts_that_are_equal_score_one() -> None:
    text = "请解释天空为什么是蓝色的"
    assert rouge_l()(text, text) == 1.0
    assert tokens_of("用Python写 Ça_va ｶﾞ หญิง") == ["用", "python", "写", "ça", "va", "ｶ", "ﾞ", *"หญ", "ิ", "ง"]


TOKENS = st.lists(st.sampled_from("abcdefgh"), max_size=14)


@given(st.lists(TOKENS, max_size=25), TOKENS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.71, 0.9, 1.0]))
def test_pruning_never_changes_the_answer(texts: list[list[str]], new: list[str], threshold: float) -> None:
    fast, slow = SimilarityIndex(threshold), SimilarityIndex(threshold, pruned=False)
    for text in texts:
        fast.add(text)
        slow.add(text)
    assert fast.has_similar(new) == slow.has_similar(new)


def test_pruning_on_texts_like_real_ones() -> None:
    """Near copies at every distance from the threshold; and few comparisons are left."""
    draw = random.Random(5)
    words = [f"w{n}" for n in range(400)]
    weights = [1 / (n + 3) for n in range(400)]
    fast, slow = SimilarityIndex(0.7), SimilarityIndex(0.7, pruned=False)
    found = 0
    for _ in range(1500):
        if fast.texts and draw.random() < 0.4:
            text = list(draw.choice(fast.texts))
            for _ in range(draw.randrange(len(text) + 1)):
                text[draw.randrange(len(text))] = draw.choice(words)
        else:
            text = draw.choices(words, weights, k=draw.randint(3, 25))
        similar = fast.has_similar(text)
        assert similar == slow.has_similar(text)
        found += similar
        if not similar:
            fast.add(text)
            slow.add(text)
    assert 50 < found < 1000
    assert fast.compared < slow.compared / 20
