"""Scores of texts: the libraries' own figures, and what is known by hand."""

from __future__ import annotations

import random
import re
import warnings

import pytest

from hpclm.metrics import larger_is_better, score_by
from hpclm.metrics.task_scores import kind_of, score
from hpclm.metrics.text_scores import bleu, rouge, squad_exact_match, squad_f1

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat,",
    "it's",
    "3.5",
    "metres",
    "(or",
    "1,000)",
    "wide-ish!",
    "&",
    "so:",
    "“on”",
    "10-20",
    "U.S.",
    "he",
    "said",
    '"no"',
]


def texts(seed: int, count: int = 40) -> tuple[list[str], list[str]]:
    """Predictions that are like their answers, more or less; some very short."""
    draw = random.Random(seed)
    answers = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]
    predictions = []
    for answer in answers:
        words = answer.split()
        for _ in range(draw.randint(0, 3)):
            words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
        predictions.append(" ".join(words[: draw.randint(1, len(words))]))
    return predictions, answers


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_sacrebleus(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sacrebleu

    predictions, answers = texts(seed)
    assert bleu(predictions, answers) == pytest.approx(sacrebleu.corpus_bleu(predictions, [answers]).score / 100)
    # few and short sentences, where whole orders have no match
    for size in (1, 2, 3):
        few = sacrebleu.corpus_bleu(predictions[:size], [answers[:size]]).score / 100
        assert bleu(predictions[:size], answers[:size]) == pytest.approx(few)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_is_rouge_scores(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    for prediction, answer in zip(*texts(seed), strict=True):
        theirs = scorer.score(answer, prediction)
        assert rouge(prediction, answer) == pytest.approx({kind: theirs[kind].fmeasure for kind in kinds})


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("a tower", "Eiffel tower", 0.0, 2 / 3),
        ("Paris", "London", 0.0, 0.0),
        ("to be or not to be", "to be", 0.0, 2 * (2 / 6) * 1 / (2 / 6 + 1)),
        ("", "x", 0.0, 0.0),
    ],
)
def test_squads_exact_match_and_f1(prediction: str, answer: str, exact: float, f1: float) -> None:
    assert squad_exact_match(prediction, answer) == exact
    assert squad_f1(prediction, answer) == pytest.approx(f1)


def test_squad_takes_the_best_of_a_questions_answers() -> None:
    found = score("squad", ["Paris", "in 1990"], [["London", "paris"], ["1990", "the year 1990"]])
    assert found == {"examples": 2, "squad_exact_match": 0.5, "squad_f1": pytest.approx((1 + 2 / 3) / 2)}


def test_macro_f1_counts_every_label_alike() -> None:
    right = [["positive"], ["negative"], ["neutral"], ["neutral"]]
    found = score("classification", [" positive", "positive", "Neutral", "nonsense"], right)
    # positive: precision 1/2, recall 1; negative: 0; neutral: precision 1, recall 1/2
    assert found == {"examples": 4, "label_accuracy": 0.5, "label_macro_f1": pytest.approx((2 / 3 + 0 + 2 / 3) / 3)}


def test_intents_and_slots() -> None:
    answers = [["\nIntent: play_music\nSlots: artist(adele), time(today)"], ["\nIntent: stop\nSlots: None"]]
    found = score("intent-slot", ["\nIntent: play_music\nSlots: artist(adele)", "\nIntent: go\nSlots: None"], answers)
    assert found == {
        "examples": 2,
        "exact_match": 0.0,
        "intent_accuracy": 0.5,
        "slot_f1": pytest.approx(2 * 1 / (1 + 2)),
    }


def test_what_the_answers_look_like() -> None:
    assert kind_of([["\nIntent: a\nSlots: None"]] * 3) == "intent-slot"
    assert kind_of([[" positive"], [" negative"]] * 8) == "classification"
    assert kind_of([["a", "b"], ["c"]]) == "squad"
    assert kind_of([[f"answer {n}"] for n in range(20)]) == "squad"


def test_one_registry_has_two_exact_matches() -> None:
    names = ["exact_match", "squad_exact_match", "squad_f1", "bleu", "rouge_l"]
    found = score_by(names, ["the  cat", "The Dog."], [["the cat"], ["dog"]])
    assert list(found) == names
    assert (found["exact_match"], found["squad_exact_match"], found["squad_f1"]) == (0.5, 1.0, 1.0)
    assert score_by(names, [], []) == {}


def test_earlier_names_mean_what_they_measured() -> None:
    assert score_by(["accuracy", "f1", "rouge"], ["cat"], [["cat"]]) == {
        "exact_match": 1.0,
        "squad_f1": 1.0,
        "rouge_l": 1.0,
    }


def test_which_direction_is_better() -> None:
    assert larger_is_better("exact_match")
    assert not larger_is_better("val_loss")
    assert not larger_is_better("perplexity")


CHINESE = [
    "今天天气很好。",
    "我喜欢吃苹果,也喜欢GPT-4!",
    "深度学习(deep learning)在2024年…",
    "他说：“好的”。",
    "ＡＢＣ １２３",
]


def test_chinese_is_scored_by_characters() -> None:
    """As sacrebleu's tokenize=zh and rouge-score with a tokenizer of characters, which by itself gives 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    answers = [*CHINESE[1:], CHINESE[0]]
    mixed = [a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(CHINESE, answers, strict=True)]
    wanted = sacrebleu.corpus_bleu(mixed, [answers], tokenize="zh").score / 100
    assert bleu(mixed, answers, chinese=True) == pytest.approx(wanted)
    assert bleu(CHINESE, CHINESE, chinese=True) == pytest.approx(1.0)

    class Characters:
        def tokenize(self, text: str) -> list[str]:
            return re.findall("[a-z0-9]+|[\u4e00-\u9fff]", text.lower())

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Characters())
    for made, answer in zip(mixed, answers, strict=True):
        theirs = {name: one.fmeasure for name, one in scorer.score(answer, made).items()}
        assert rouge(made, answer) == pytest.approx(theirs)
    assert rouge(CHINESE[0], CHINESE[0])["rougeL"] == 1.0
