"""Where an answer ends besides the end token: at the user's strings."""

from __future__ import annotations

from collections.abc import Sequence

from hpclm.data.tokenizers import Tokenizer


class EndStrings:
    """Searches the generated tokens for strings, one token at a time.

    Attributes:
        ids: special tokens among the strings, which end an answer as the end token does.
        texts: the other strings.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids = [tokenizer.special_ids[text] for text in strings if text in tokenizer.special_ids]
        self.texts = [text for text in strings if text not in tokenizer.special_ids]
        # A token has at least one byte, so as many tokens as the longest string has bytes contain all of it.
        self.window = max((len(text.encode()) for text in self.texts), default=0)

    def reached(self, ids: list[int]) -> bool:
        """Whether the newest token completed one of the strings."""
        if not self.texts:
            return False
        tail = self.tokenizer.decode(ids[-self.window - 1 :])
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> tuple[str, bool]:
        """The text before the first of the strings, and whether there is one."""
        starts = [start for start in (text.find(one) for one in self.texts) if start >= 0]
        return (text[: min(starts)], True) if starts else (text, False)
