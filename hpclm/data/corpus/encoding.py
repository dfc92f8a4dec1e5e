"""Texts to tokens in arrays: by the `tokenizers` library, which is the reference, or by a faster one that agrees with
it on the user's own data."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hpclm.core.errors import DataError
from hpclm.data.tokenizers import SentencePieceTokenizer, Tokenizer

# Where tokenizers differ if they do: controls, joiners, other spaces, and the end token written out.
HARD_TEXTS = [
    "",
    " ",
    "\n\n \t x  y\r\n",
    "\x00\x01\x7f\x85\xa0\u2028\u3000\ufeff",
    "👩‍👩‍👧‍👦🏽 e\u0301 ﬁ 日本語 العربية",
    "don't WE'LL they'Re 's 1234567 3.14 x_y",
    "a<|endoftext|>b</s>c<s>",
    "  leading and trailing  ",
]


class Encoder(Protocol):
    """Encodes texts one after the other.

    Attributes:
        name: of the library, for messages and records.
    """

    name: str

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All texts' tokens [n], and how many each text has [texts]."""


class Reference:
    """The tokenizer's own library."""

    def __init__(self, tokenizer: Tokenizer, *, special_tokens: bool = False) -> None:
        self.tokenizer = tokenizer
        self.name = "sentencepiece" if isinstance(tokenizer, SentencePieceTokenizer) else "tokenizers"
        if self.name == "tokenizers":
            tokenizer.backend.encode_special_tokens = not special_tokens

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            found = self.tokenizer.encode_batch(texts)
        else:
            found = [one.ids for one in self.tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)]
        flat = [token for ids in found for token in ids]
        return np.array(flat, dtype=np.int64), np.array([len(ids) for ids in found], dtype=np.int64)


class Gigatoken:
    """The package gigatoken. Where special tokens are taken for such in texts, a text that names one goes to the
    reference, which knows what it is there; else gigatoken is not told of them."""

    name = "gigatoken"

    def __init__(self, tokenizer: Tokenizer, reference: Reference, *, special_tokens: bool) -> None:
        import gigatoken

        whole = json.loads(tokenizer.backend.to_str())
        if not special_tokens:
            whole["added_tokens"] = [one for one in whole.get("added_tokens") or [] if not one.get("special")]
        self.backend = gigatoken.Tokenizer.from_json(json.dumps(whole))
        self.reference = reference
        names = list(tokenizer.special_ids) if special_tokens else []
        first, last = min(names, default=""), max(names, default="")
        same = (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
        self.prefix = first[: next(same, min(len(first), len(last)))]  # that all names begin with
        self.special = re.compile("|".join(map(re.escape, names))) if names else None

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        odd = [number for number, text in enumerate(texts) if self._names_special(text)]
        if not odd:
            return self._plain(texts)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        start = 0
        for number in odd:
            parts += [self._plain(texts[start:number]), self.reference.encode([texts[number]])]
            start = number + 1
        parts.append(self._plain(texts[start:]))
        return np.concatenate([one for one, _ in parts]), np.concatenate([counts for _, counts in parts])

    def _plain(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        rows = self.backend.encode_batch(texts, parallel=False).layout
        ends = np.asarray(rows.offsets.data)
        tokens = np.asarray(rows.content.data)[ends[0] : ends[-1]]
        return tokens, np.diff(ends)

    def _names_special(self, text: str) -> bool:
        if self.special is None or (self.prefix and self.prefix not in text):
            return False
        return self.special.search(text) is not None


class Tiktoken:
    """The package tiktoken, for byte-level BPE whose ids are the order of its merges, as OpenAI's are."""

    name = "tiktoken"

    def __init__(self, tokenizer: Tokenizer) -> None:
        import tiktoken

        from hpclm.data.tiktoken_files import ranks_of

        pattern, ranks = ranks_of(tokenizer)
        self.backend = tiktoken.Encoding("hpclm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = self.backend.encode_ordinary_batch(texts, num_threads=1)
        flat = [token for ids in found for token in ids]
        return np.array(flat, dtype=np.int64), np.array([len(ids) for ids in found], dtype=np.int64)


ENCODERS = ("gigatoken", "tiktoken", "tokenizers")


def make_encoder(tokenizer: Tokenizer, name: str, *, special_tokens: bool = False) -> Encoder:
    """The encoder of that name (see `ENCODERS`). Raises DataError where it cannot be used for this tokenizer."""
    reference = Reference(tokenizer, special_tokens=special_tokens)
    if name == "tokenizers" or reference.name == "sentencepiece":
        return reference
    try:
        if name == "gigatoken":
            return Gigatoken(tokenizer, reference, special_tokens=special_tokens)
        if special_tokens:
            raise DataError("it knows no special tokens in texts")
        return Tiktoken(tokenizer)
    except ImportError:
        raise DataError(f"the package {name} is not installed") from None
    except DataError:
        raise
    except Exception as error:  # these libraries raise plain exceptions for tokenizers that they do not know
        raise DataError(f"{name} cannot use this tokenizer ({error})") from None


def disagreement(fast: Encoder, reference: Encoder, texts: Sequence[str]) -> str | None:
    """The beginning of the first text that two encoders encode differently; None where there is none."""
    if fast.name == reference.name:
        return None
    for text in texts:
        try:
            ours, theirs = fast.encode([text])[0], reference.encode([text])[0]
        except Exception as error:
            return f"{text[:40]!r} ({error})"
        if len(ours) != len(theirs) or (ours != theirs).any():
            return repr(text[:40])
    return None


def choose(tokenizer: Tokenizer, wanted: str, sample: Sequence[str], *, special_tokens: bool) -> tuple[str, list[str]]:
    """The fastest encoder that is installed and agrees with the reference on `sample` and on `HARD_TEXTS`, and why
    others were not taken.

    Args:
        wanted: `auto`, or the one to use.

    Raises DataError where the wanted one does not agree or cannot be used.
    """
    reference: Any = Reference(tokenizer, special_tokens=special_tokens)
    names = ENCODERS if wanted == "auto" else (wanted,)
    reasons: list[str] = []
    for name in names:
        try:
            encoder = make_encoder(tokenizer, name, special_tokens=special_tokens)
            where = disagreement(encoder, reference, [*HARD_TEXTS, *sample])
        except DataError as error:
            why = str(error)
        else:
            if where is None:
                return encoder.name, reasons
            why = f"{name} gives other tokens than {reference.name} for {where}"
        if wanted != "auto":
            raise DataError(f"--encoder {name}: {why}; use auto")
        reasons.append(why)
    return "tokenizers", reasons
