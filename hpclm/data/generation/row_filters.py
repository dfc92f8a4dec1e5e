"""Which rows are left out, and why: the filters of Stanford Alpaca's generate_instruction.py, each switchable."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Collection, Sequence

from hpclm.data.generation.generation_words import Filter
from hpclm.data.generation.instruction_rows import InstructionRow
from hpclm.data.generation.similarity import SimilarityIndex, is_spaceless, tokens_of, word_count

# What a model of text alone cannot see, hear or do.
WORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
_PROGRAM = "Write a program"
DUPLICATE = "duplicate"


class RowFilters:
    """Filters with a memory: of rows that were kept, and of the seeds.

    Args:
        active: the filters that are on.
        words: of an instruction, the least and the most.
        drop_words: words beyond `WORDS`; of scripts without spaces they are found anywhere.
        similarity: ROUGE-L above which an instruction is too similar to an earlier one.
    """

    def __init__(
        self, active: Collection[Filter], words: tuple[int, int], drop_words: Sequence[str], similarity: float
    ) -> None:
        self.active, self.least, self.most = frozenset(active), *words
        self.listed = re.compile("|".join(map(_pattern, (*WORDS, *drop_words))), re.IGNORECASE)
        self.index = SimilarityIndex(similarity)
        self.kept: set[tuple[str, str]] = set()

    def add(self, row: InstructionRow) -> None:
        """A row that later ones are compared with."""
        self.kept.add(_plain(row))
        if Filter.similar in self.active:
            self.index.add(tokens_of(row.instruction))

    def dropped_by(self, row: InstructionRow) -> str | None:
        """The name of the first filter that leaves the row out. Equal rows are always left out."""
        text = row.instruction
        tests: tuple[tuple[Filter, Callable[[], bool]], ...] = (
            (Filter.length, lambda: not self.least <= word_count(text) <= self.most),
            (Filter.words, lambda: self.listed.search(text) is not None),
            (Filter.program, lambda: text.startswith(_PROGRAM)),
            (Filter.punctuation, lambda: _is_odd_start(text[:1])),
            (Filter.non_ascii, lambda: not text[:1].isascii()),
        )
        for name, fails in tests:
            if name in self.active and fails():
                return name.value
        if _plain(row) in self.kept:
            return DUPLICATE
        if Filter.similar in self.active and self.index.has_similar(tokens_of(text)):
            return Filter.similar.value
        return None


def _pattern(word: str) -> str:
    found = re.escape(word)
    return found if any(map(is_spaceless, word)) else rf"\b{found}\b"


def _is_odd_start(character: str) -> bool:
    """ASCII punctuation as in the script; of other characters symbols, and punctuation that opens nothing. Letters of
    every script, brackets and quotes that open, and the Spanish ¿ and ¡ may begin an instruction."""
    if character.isascii():
        return character in string.punctuation
    category = unicodedata.category(character)
    return category[0] in "SCZM" or (category[0] == "P" and category not in ("Ps", "Pi") and character not in "¿¡")


def _plain(row: InstructionRow) -> tuple[str, str]:
    return " ".join(row.instruction.lower().split()), " ".join(row.input.lower().split())
