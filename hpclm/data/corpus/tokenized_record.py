"""What is known of an indexed data set that hpclm made: `PREFIX.tokenized.json`, written last. Without NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.errors import HpclmError
from hpclm.core.records import from_dict
from hpclm.core.sealed import read_sealed


@dataclass(frozen=True)
class Counts:
    """What a part, or the whole, contains. `empty`: documents without tokens; `bad`: lines left out; `text_bytes`: of
    the texts in UTF-8; `examples`: places of the first bad lines."""

    documents: int = 0
    tokens: int = 0
    empty: int = 0
    bad: int = 0
    text_bytes: int = 0
    examples: list[str] = field(default_factory=list)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.empty + other.empty,
            self.bad + other.bad,
            self.text_bytes + other.text_bytes,
            [*self.examples, *other.examples][:3],
        )


@dataclass(frozen=True)
class Tokenized:
    """`PREFIX.tokenized.json`: the record of what was made.

    Attributes:
        outputs: the prefixes of the data sets.
        seconds: of the last call; `earlier_bytes` of the text were tokenised by calls before it.
    """

    mark: str
    spec: CorpusSpec
    encoder: str
    outputs: list[str]
    counts: Counts
    seconds: float
    earlier_bytes: int = 0

    @property
    def rate(self) -> float:
        """Bytes of text a second, of the last call."""
        return (self.counts.text_bytes - self.earlier_bytes) / max(self.seconds, 1e-9)


def record_of(prefix: str) -> Tokenized | None:
    """The record of the command that made a data set: beside it, called as its prefix begins."""
    folder = Path(prefix).parent
    for path in sorted(folder.glob("*.tokenized.json")):
        try:
            raw = read_sealed(path)
            found = None if raw is None else from_dict(Tokenized, raw)
        except (HpclmError, OSError, ValueError):
            continue
        if found is not None and Path(prefix).name in [Path(one).name for one in found.outputs]:
            return found
    return None
