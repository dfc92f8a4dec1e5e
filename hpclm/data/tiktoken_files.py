"""tiktoken's vocabularies: a `.tiktoken` file lists each token's bytes with its rank, by which pairs are merged.

The file has neither the pattern that cuts a text into words nor special tokens; both belong to the encoding of its
name. Source: openai/tiktoken 0.14, tiktoken/load.py and tiktoken_ext/openai_public.py.
"""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from hpclm.core.errors import DataError
from hpclm.core.files import open_file
from hpclm.formats.tiktoken_encodings import SPECIAL_TOKENS

if TYPE_CHECKING:
    from hpclm.data.tokenizers import Tokenizer

SUFFIX = ".tiktoken"
_MAX_BYTES = 64 << 20
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


PATTERNS = {"r50k_base": _GPT2, "cl100k_base": _CL100K, "o200k_base": _O200K}


def read_tiktoken(path: Path) -> Backend:
    """The tokenizer in a `.tiktoken` file, as one of the `tokenizers` library. Raises DataError."""
    name = path.name.removesuffix(SUFFIX)
    if name not in PATTERNS:
        raise DataError(
            f"{path}: a .tiktoken file does not say how words are cut; name it as its encoding is called "
            f"({', '.join(PATTERNS)}), or give a tokenizer.json"
        )
    ranks = _read_ranks(path)
    names = _byte_names()
    spelled = {"".join(names[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [pair for token in sorted(ranks, key=ranks.__getitem__) if (pair := _halves(token, ranks)) is not None]
    written = [tuple("".join(names[byte] for byte in half) for half in pair) for pair in merges]
    # special tokens are entries too, so that the library keeps their numbers, which leave gaps; tokens that merging
    # does not reach are taken as they are
    spelled.update(SPECIAL_TOKENS[name])
    backend = Backend(models.BPE(vocab=spelled, merges=written, ignore_merges=True))  # type: ignore[arg-type]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS[name]))
    return backend


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        with open_file(path) as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise DataError(f"{path}:{number}: not a token in base64 and its rank") from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(f"{path}: has no token for the byte {missing[0]}; is it whole?")
    return ranks


def _halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that are merged into `token`: what is left when all pairs of lower rank have been."""
    if len(token) == 1:
        return None
    limit = ranks[token]
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], limit) for i in range(len(parts) - 1)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= limit:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


@functools.cache
def _byte_names() -> dict[int, str]:
    """GPT-2's printable character for each byte (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}


def ranks_of(tokenizer: Tokenizer) -> tuple[str, dict[bytes, int]]:
    """The pattern and the ranks of a byte-level BPE. Raises DataError for one that tiktoken cannot express."""
    raw = json.loads(tokenizer.backend.to_str())
    model, cutter = raw["model"], raw["pre_tokenizer"] or {}
    if model["type"] != "BPE" or raw["normalizer"] is not None or model.get("byte_fallback"):
        raise DataError("not a byte-level BPE")
    pattern = _pattern(cutter)
    bytes_of = {name: byte for byte, name in _byte_names().items()}
    special = {token["content"] for token in raw["added_tokens"]}
    try:
        ranks = {
            bytes(bytes_of[character] for character in name): number
            for name, number in model["vocab"].items()
            if name not in special
        }
    except KeyError:
        raise DataError("its entries are not bytes") from None
    pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
    numbers = [model["vocab"]["".join(pair)] for pair in pairs]
    if numbers != sorted(numbers) or len(numbers) != len(ranks) - 256:
        raise DataError("its ids are not the order of its merges")
    return pattern, ranks


def _pattern(cutter: dict[str, object]) -> str:
    """The regular expression of a pre-tokenizer: ByteLevel's own, or that of a Split before it."""
    if cutter.get("type") == "ByteLevel" and cutter.get("use_regex", True) and not cutter.get("add_prefix_space"):
        return _GPT2
    parts = cutter.get("pretokenizers")
    if cutter.get("type") == "Sequence" and isinstance(parts, list) and len(parts) == 2:
        first, second = parts
        plain = second.get("type") == "ByteLevel" and not second.get("use_regex", True)
        if first.get("type") == "Split" and first.get("behavior") == "Isolated" and plain and not first.get("invert"):
            return str(first["pattern"].get("Regex", ""))
    raise DataError("its words are not cut by one expression")
