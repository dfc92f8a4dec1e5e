"""ROUGE-L of a text against all earlier ones, for every script, and fast enough for tens of thousands of rows.

ROUGE-L's F-measure (Lin 2004) as rouge-score computes it, on tokens of any script: rouge-score's own keep ASCII letters
and digits alone, so that two equal Chinese texts score 0 there. For English the tokens are the same.
"""

from __future__ import annotations

import math
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

# Written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, bopomofo, Han.
_SPACELESS = (
    (0x0E01, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3041, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)


def is_spaceless(character: str) -> bool:
    """Whether the character is a letter of a script that has no spaces between words."""
    code = ord(character)
    return any(first <= code <= last for first, last in _SPACELESS) and unicodedata.category(character)[0] in "LN"


class _Cut(dict[int, str]):
    """For str.translate: what each character becomes before a text is cut at spaces."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if is_spaceless(character):
            made = f" {character} "
        else:
            made = character if unicodedata.category(character)[0] in "LNM" else " "
        self[code] = made
        return made


class _Counted(dict[int, str]):
    """For str.translate: letters of spaceless scripts stand alone, their punctuation is no word."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_wide = 0x3000 <= code <= 0x303F or 0xFF00 <= code <= 0xFFEF
        if is_spaceless(character):
            made = f" {character} "
        else:
            made = " " if is_wide and unicodedata.category(character)[0] in "PSZ" else character
        self[code] = made
        return made


_CUT, _COUNTED = _Cut(), _Counted()


def tokens_of(text: str) -> list[str]:
    """Words in lower case; of Chinese and other scripts without spaces, characters."""
    return unicodedata.normalize("NFC", text).lower().translate(_CUT).split()


def word_count(text: str) -> int:
    """Words as spaces part them; of scripts without spaces, characters."""
    return len(text.translate(_COUNTED).split())


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    return _Query(first).common_length(second)


def f_measure(common: int, first: int, second: int) -> float:
    """ROUGE-L of two texts of these numbers of tokens. The order of the operations is rouge-score's: where a value lies
    on the threshold, the last bit decides."""
    if not common:
        return 0.0
    precision, recall = common / second, common / first
    return 2 * precision * recall / (precision + recall)


class _Query:
    """A text as bits, by Hyyrö's bit-parallel algorithm (2004): a step a token of the other text."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.length = len(tokens)
        self.full = (1 << self.length) - 1
        self.places: dict[str, int] = defaultdict(int)
        for place, token in enumerate(tokens):
            self.places[token] |= 1 << place

    def common_length(self, other: Sequence[str]) -> int:
        rest, find = self.full, self.places.get
        for token in other:
            both = rest & find(token, 0)
            rest = (rest + both) | (rest - both)
        return self.length - (rest & self.full).bit_count()


class SimilarityIndex:
    """Texts, and whether a new one is more similar to any of them than the threshold.

    Two texts with an F-measure above it share a number of tokens that their lengths give, for the common subsequence
    is no longer than what they share. Texts that cannot reach it are not compared: every token of every text is in an
    inverted index (a token's second occurrence is another key), and a text that shares at least n of m keys has one of
    any m - n + 1 of them; the rarest are looked up. The answer is that of comparing all.

    Args:
        threshold: between 0 and 1.
        pruned: False compares all, as a test does.
    """

    def __init__(self, threshold: float, *, pruned: bool = True) -> None:
        self.threshold, self.pruned = threshold, pruned
        self.texts: list[tuple[str, ...]] = []
        self.compared = 0
        self._lengths: list[int] = []
        self._postings: dict[str, list[int]] = defaultdict(list)
        self._needed = lru_cache(maxsize=1 << 16)(self._least_common)

    def add(self, tokens: Sequence[str]) -> None:
        number = len(self.texts)
        self.texts.append(tuple(map(sys.intern, tokens)))
        self._lengths.append(len(tokens))
        for key in _keys(tokens):
            self._postings[key].append(number)

    def has_similar(self, tokens: Sequence[str]) -> bool:
        """Whether an earlier text has an F-measure above the threshold."""
        query = _Query(tokens)
        for number in self._candidates(tokens) if self.pruned else range(len(self.texts)):
            other = self.texts[number]
            self.compared += 1
            if f_measure(query.common_length(other), len(tokens), len(other)) > self.threshold:
                return True
        return False

    def _least_common(self, first: int, second: int) -> float:
        """The shortest common subsequence that puts texts of these lengths above the threshold; infinite where none."""
        most = min(first, second)
        # by the formula, then to the bit
        length = max(1, min(most, int(self.threshold * (first + second) / 2)))
        while length > 1 and f_measure(length - 1, first, second) > self.threshold:
            length -= 1
        while length <= most and f_measure(length, first, second) <= self.threshold:
            length += 1
        return length if length <= most else math.inf

    def _candidates(self, tokens: Sequence[str]) -> list[int]:
        """Texts that may be above the threshold."""
        length = len(tokens)
        # the shortest text that may be: it lies in this one as a whole
        least = next((n for n in range(1, length + 1) if f_measure(n, length, n) > self.threshold), None)
        if least is None:
            return []
        postings = self._postings
        keys = sorted(_keys(tokens), key=lambda key: len(postings.get(key, ())))
        looked_up = keys[: length - least + 1]
        shared = Counter(chain.from_iterable(postings[key] for key in looked_up if key in postings))
        left, needed, lengths = length - len(looked_up), self._needed, self._lengths
        return [number for number, count in shared.items() if count + left >= needed(length, lengths[number])]


def _keys(tokens: Sequence[str]) -> list[str]:
    """The tokens, each occurrence after the first as a key of its own."""
    seen: dict[str, int] = defaultdict(int)
    keys = []
    for token in tokens:
        keys.append(f"{token} {seen[token]}" if seen[token] else token)
        seen[token] += 1
    return keys
