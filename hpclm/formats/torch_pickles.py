"""A file of torch.save as an index of tensors, read without torch.

The format (torch/serialization.py): an uncompressed zip with `<name>/data.pkl`, a pickle whose tensors are calls of
`torch._utils._rebuild_tensor_v2` on storages named by persistent ids, and `<name>/data/<key>`, each storage's bytes.
The pickle is loaded with stand-ins for exactly those names; any other name is refused, so it cannot execute code.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from hpclm.core.errors import CheckpointError
from hpclm.formats.archive import Archive, Member
from hpclm.formats.format_guard import guarded

DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
_MAX_PICKLE = 64 << 20
# Of what torch.save writes, a byte of the pickle is seen less than once: names, numbers and shared empty mappings.
_MOST_SEEN = 64
# Opcodes that change the object below what they take.
_CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


@dataclass(frozen=True)
class TensorFacts:
    """A tensor in a member. `start`: its first byte in the member's file; `strides` are in values."""

    member: Member
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def __setstate__(self, state: object) -> None:
        """A pickle must not change what has been checked."""
        raise TypeError("a tensor with unexpected state")

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def rows(self, first: int, count: int) -> TensorFacts:
        """Some of the first axis."""
        start = self.start + first * self.strides[0] * BYTES.get(self.dtype, 1)
        return TensorFacts(self.member, self.dtype, (count, *self.shape[1:]), self.strides, start)

    def inner(self, place: tuple[int, ...]) -> TensorFacts:
        """What is at an index of the first axes."""
        strides = zip(place, self.strides, strict=False)
        start = self.start + sum(number * stride for number, stride in strides) * BYTES.get(self.dtype, 1)
        return TensorFacts(self.member, self.dtype, self.shape[len(place) :], self.strides[len(place) :], start)


@dataclass(frozen=True)
class _Storage:
    dtype: str
    start: int
    count: int

    def __setstate__(self, state: object) -> None:
        raise TypeError("a storage with unexpected state")


@guarded("a file of torch.save")
def read_index(archive: Archive, member: Member, other: Callable[[str, str], Any] | None = None) -> Any:
    """What torch.save wrote, with TensorFacts in place of tensors. Raises CheckpointError.

    Args:
        other: what stands for a class that is not needed for tensors, by module and name; else it is refused.
    """
    window = _Window(archive, member)
    where = f"{archive.path}: {member.name}"
    try:
        with zipfile.ZipFile(window) as opened:
            names = opened.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(pickles) != 1:
                raise CheckpointError(f"{where}: no data.pkl in it; it was not written by torch.save")
            prefix = pickles[0].removesuffix("data.pkl")
            if opened.getinfo(pickles[0]).file_size > _MAX_PICKLE:
                raise CheckpointError(f"{where}: its index is larger than {_MAX_PICKLE >> 20} MiB")
            text = opened.read(pickles[0])
            refuse_bombs(text)
            return _Reader(text, member, opened, window, prefix, other).load()
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{where}: damaged, or in torch's format from before 1.6, which cannot be read without unpickling; load "
            "and save it once with torch.load(…, weights_only=True) and torch.save"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(error).startswith(str(archive.path)) else f"{where}: {error}") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its index is damaged ({type(error).__name__}: {error})") from None


def refuse_bombs(text: bytes) -> None:
    """Raises CheckpointError for a pickle that takes far more memory or time than it has bytes.

    The unpickler allocates a list as long as the largest memo index; and who hashes, compares or walks ((a, a), (a, a))
    with both halves one object sees four, so that thirty-five levels of it, in two hundred bytes, take hours.
    ValueError, IndexError or KeyError for one that is not whole.
    """
    most = _MOST_SEEN * len(text)
    stack: list[list[int] | None] = []  # what whoever walks an object sees of it; None: a mark
    memo: dict[int, list[int] | None] = {}
    for opcode, argument, _ in pickletools.genops(text):
        name = opcode.name
        if "PUT" in name or name == "MEMOIZE":
            place = len(memo) if name == "MEMOIZE" else argument
            if not isinstance(place, int) or place > len(text):
                raise CheckpointError(f"its pickle has {len(text)} bytes and asks for {place} places in memory")
            memo[place] = stack[-1]
        elif "GET" in name or name == "DUP":
            stack.append(stack[-1] if name == "DUP" else memo[cast(int, argument)])
        else:
            seen = _applied(opcode, stack)
            if seen > most:
                raise CheckpointError(f"its pickle of {len(text)} bytes holds itself more than {most} times")


def _applied(opcode: pickletools.OpcodeInfo, stack: list[list[int] | None]) -> int:
    """Do to `stack` what the opcode does, by its description in pickletools; the largest number that changed."""
    before, after = list(opcode.stack_before), opcode.stack_after
    taken: list[list[int]] = []
    if pickletools.markobject in before:
        while (one := stack.pop()) is not None:
            taken.append(one)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        if (one := stack.pop()) is not None:
            taken.append(one)
    inside = sum(one[0] for one in taken)
    if opcode.name in _CHANGES and taken:
        *_, changed = taken
        changed[0] = inside
        stack.append(changed)
        return inside
    stack.extend(None if one is pickletools.markobject else [1 + inside] for one in after)
    return inside


class _Window(io.RawIOBase):
    """A member as a file of its own."""

    def __init__(self, archive: Archive, member: Member) -> None:
        self.bytes, self.base, self.size, self.place = archive.map(member), member.offset, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = max(0, offset + (0, self.place, self.size)[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, count: int | None = -1) -> bytes:
        stop = self.size if count is None or count < 0 else min(self.size, self.place + count)
        found = bytes(self.bytes[self.base + self.place : self.base + max(stop, self.place)])
        self.place += len(found)
        return found


def _no_bytes() -> bytes:
    """How a pickle of protocol 2 makes empty bytes."""
    return b""


def _latin_1(text: str, encoding: str) -> bytes:
    """How it makes others."""
    if encoding != "latin1":
        raise CheckpointError("its pickle contains text in an unexpected encoding")
    return text.encode("latin-1")


class _Reader(pickle.Unpickler):
    def __init__(
        self,
        text: bytes,
        member: Member,
        zipped: zipfile.ZipFile,
        window: _Window,
        prefix: str,
        other: Callable[[str, str], Any] | None,
    ) -> None:
        super().__init__(io.BytesIO(text), encoding="utf-8")
        self.member, self.zipped, self.window, self.prefix, self.other = member, zipped, window, prefix, other

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): tuple,
            # transformer-engine's extra state, which is not used here: a BytesIO, empty or of pickled bytes
            ("_io", "BytesIO"): io.BytesIO,
            ("__builtin__", "bytes"): _no_bytes,
            ("_codecs", "encode"): _latin_1,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if self.other is not None:
            return self.other(module, name)
        raise CheckpointError(f"its pickle requests {module}.{name}, which is not needed for weights; do not trust it")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, str) or not str(key).isdecimal():
            raise CheckpointError("its pickle contains something other than tensors")
        info = self.zipped.getinfo(f"{self.prefix}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError("its tensors are compressed, which torch.save never does")
        self.window.seek(info.header_offset)
        header = self.window.read(30)
        name, extra = struct.unpack("<HH", header[26:30])
        start = self.member.offset + info.header_offset + 30 + name + extra
        if (
            info.file_size < int(count) * BYTES.get(dtype, 1)
            or start + info.file_size > self.window.base + self.window.size
        ):
            raise CheckpointError(f"a tensor's bytes are cut off ({info.filename})")
        return _Storage(dtype, start, int(count))

    def _tensor(self, storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> TensorFacts:
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size)
        if offset < 0 or min((*shape, *strides, 0)) < 0 or last >= max(1, storage.count):
            raise CheckpointError("a tensor reaches beyond its storage")
        return TensorFacts(
            self.member, storage.dtype, shape, strides, storage.start + offset * BYTES.get(storage.dtype, 1)
        )
