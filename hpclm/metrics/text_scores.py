"""Text against text: equality, SQuAD's exact match and F1, BLEU, ROUGE. All are fractions of 1."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LONGEST = 4  # n-grams of BLEU
# What sacrebleu takes for Chinese (tokenizers/tokenizer_zh.py), in which U+2001 to U+2A6D are by an accident of writing
_RANGES = ("\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb\uf900-\ufa2d"
           "\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef")  # fmt: skip
_CHINESE = re.compile(f"[{_RANGES}]")
# Words of Latin letters and digits, as rouge-score has them; a character of a script without spaces is one
_WORDS = re.compile("[a-z0-9]+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def plain(text: str) -> str:
    """Without leading and trailing white space, inner runs reduced to one blank."""
    return " ".join(text.split())


def normalized(text: str) -> str:
    """SQuAD v1.1's normalisation (Rajpurkar et al. 2016; evaluate-v1.1.py): lower case, without punctuation, articles
    and surplus space."""
    return plain(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def squad_exact_match(prediction: str, answer: str) -> float:
    """1.0 where both are the same after SQuAD's normalisation."""
    return float(normalized(prediction) == normalized(answer))


def squad_f1(prediction: str, answer: str) -> float:
    """SQuAD's F1 over the words of both after its normalisation; where one has no words, whether both have none
    (evaluate-v2.0.py, compute_f1)."""
    words, wanted = normalized(prediction).split(), normalized(answer).split()
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def bleu(predictions: Sequence[str], answers: Sequence[str], *, chinese: bool = False) -> float:
    """Corpus BLEU-4 (Papineni et al. 2002) of one reference each, with sacrebleu's defaults: mteval-v13a's tokens, and
    for an order without a match half of what the order before it was smoothed to (Chen and Cherry 2014, method 3).

    Args:
        chinese: each character of Chinese is a token, as with sacrebleu's tokenize="zh".
    """
    tokens_of = _tokens_zh if chinese else _tokens_13a
    matches, totals = [0] * _LONGEST, [0] * _LONGEST
    length = reference = 0
    for prediction, answer in zip(predictions, answers, strict=True):
        made, wanted = tokens_of(prediction), tokens_of(answer)
        length, reference = length + len(made), reference + len(wanted)
        for order in range(1, _LONGEST + 1):
            found = _ngrams(made, order)
            matches[order - 1] += (found & _ngrams(wanted, order)).total()
            totals[order - 1] += found.total()
    if not any(matches):
        return 0.0
    logs, smoothing = [], 1.0
    for matched, total in zip(matches, totals, strict=True):
        if not total:
            break  # sacrebleu's effective order for a corpus of short sentences is the whole order: no such n-gram
        if not matched:
            smoothing *= 2
        logs.append(math.log((matched or 1 / smoothing) / total))
    if len(logs) < _LONGEST:
        return 0.0
    brevity = 1.0 if length >= reference else math.exp(1 - reference / length)
    return brevity * math.exp(sum(logs) / _LONGEST)


def _tokens_13a(text: str) -> list[str]:
    """mteval-v13a's tokens: punctuation separated, except for points and commas within numbers."""
    text = f" {text.rstrip()} ".replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    return _separated(text)


def _tokens_zh(text: str) -> list[str]:
    """sacrebleu's tokens of Chinese: each of its characters is one, and the rest is as mteval-v13a has it."""
    return _separated(_CHINESE.sub(r" \g<0> ", text.strip()))


def _separated(text: str) -> list[str]:
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text)
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    text = re.sub(r"([0-9])(-)", r"\1 \2 ", text)
    return text.split()


def _ngrams(tokens: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def rouge(prediction: str, answer: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), on lower-case letters and digits, without stemming; of Chinese and
    Japanese on characters, where rouge-score by itself finds no words."""
    made, wanted = (_WORDS.findall(text.lower()) for text in (prediction, answer))
    result = {}
    for order in (1, 2):
        found, there = _ngrams(made, order), _ngrams(wanted, order)
        result[f"rouge{order}"] = _f1((found & there).total(), found.total(), there.total())
    result["rougeL"] = _f1(_common_length(made, wanted), len(made), len(wanted))
    return result


def _f1(common: int, made: int, wanted: int) -> float:
    return 2 * common / (made + wanted) if common else 0.0


def _common_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def label_macro_f1(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """The mean F1 over the labels that are an answer. A prediction that is not a label counts as wrong."""
    made, wanted = [plain(text).lower() for text in predictions], [plain(text).lower() for text in answers]
    right = Counter(label for label, other in zip(wanted, made, strict=True) if label == other)
    there, said = Counter(wanted), Counter(made)
    f1 = [2 * right[label] / (there[label] + said[label]) for label in there]
    return sum(f1) / len(f1)
