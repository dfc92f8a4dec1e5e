"""Samples of one or several indexed data sets, and whether the model has their tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hpclm.core.errors import DataError
from hpclm.core.indexed_files import bin_path
from hpclm.formats.indexed_dataset import read_header

_BLOCK = 1 << 20
_BLOCKS = 64  # that are looked at before the first step, of all data sets together; one of each at least


class Blend:
    """Samples of one or several data sets; which of them each is, megatron-core's blending says.

    Args:
        blend: the data set, and the sample of it, by number.
        entries: of the model's vocabulary. A sample with another id raises DataError: without tensor parallelism it
            would end in an IndexError, or on a GPU in an assertion of a kernel, and with it the model would train on
            embeddings of zeros.
    """

    def __init__(self, members: list[Any], blend: tuple[np.ndarray, np.ndarray] | None, entries: int) -> None:
        self.members, self.blend, self.entries = members, blend, entries

    def __len__(self) -> int:
        return len(self.members[0]) if self.blend is None else len(self.blend[0])

    def __getitem__(self, number: int) -> dict[str, Any]:
        member, within = self.members[0], number
        if self.blend is not None:
            member, within = self.members[int(self.blend[0][number])], int(self.blend[1][number])
        found: dict[str, Any] = member[within]
        lowest, highest = (int(one) for one in torch.aminmax(found["labels"]))
        first = int(found["tokens"][0])  # the others are labels
        if min(lowest, first) < 0 or max(highest, first) >= self.entries:
            strange = lowest if lowest < 0 else max(highest, first)
            raise _strange(member.dataset_path, strange, self.entries, f"in sample {within}")
        return found


def look_at_ids(prefixes: list[str], entries: int) -> None:
    """Before a run begins: all ids of a few small data sets, blocks of large or many ones (the first block of each
    where there are more than half as many as blocks); `Blend` looks at every sample.

    Raises DataError for an id that the model, with `entries` in its vocabulary, does not have.
    """
    for prefix in prefixes:
        _look(prefix, entries, max(1, _BLOCKS // len(prefixes)))


def _look(prefix: str, entries: int, most: int) -> None:
    header = read_header(prefix)
    if not header.tokens:
        return
    tokens = np.memmap(bin_path(prefix), dtype=header.dtype, mode="r", shape=(header.tokens,))
    count = min(-(-header.tokens // _BLOCK), most)
    for start in np.linspace(0, max(0, header.tokens - _BLOCK), count, dtype=np.int64):
        block = tokens[start : start + _BLOCK]
        lowest, highest = int(block.min()), int(block.max())
        if lowest < 0 or highest >= entries:
            place = int(start) + int(np.argmax((block < 0) | (block >= entries)))
            raise _strange(prefix, int(tokens[place]), entries, f"at token {place}")


def _strange(prefix: str, token: int, entries: int, where: str) -> DataError:
    return DataError(
        f"{bin_path(prefix)}: has the id {token} {where}, and the model's vocabulary {entries} entries; give the "
        "tokenizer that the data was made with (hpclm data inspect names it where it is known)"
    )
