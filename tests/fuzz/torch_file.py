"""The bytes of torch.save for a dictionary of tensors of zeros, written without torch, and files that only look so."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from random import Random

_GLOBAL_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(word: str) -> bytes:
    data = word.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(key: str, shape: tuple[int, ...], storage: str = "FloatStorage") -> bytes:
    """A whole storage as a tensor."""
    count = 1
    strides: list[int] = []
    for size in reversed(shape):
        strides.insert(0, count)
        count *= size
    place = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + storage.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + integer(count)
        + b"tQ"
    )
    ordered = b"ccollections\nOrderedDict\n)R"
    return _GLOBAL_TENSOR + b"(" + place + integer(0) + sizes(shape) + sizes(tuple(strides)) + b"\x89" + ordered + b"tR"


def dictionary(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def weights(shapes: Mapping[str, tuple[int, ...]]) -> tuple[bytes, dict[str, int]]:
    """The pickle, and the bytes of each storage."""
    entries, storages = {}, {}
    for number, (name, shape) in enumerate(shapes.items()):
        entries[name] = tensor(str(number), shape)
        count = 4
        for size in shape:
            count *= size
        storages[str(number)] = count
    return pickled(dictionary(entries)), storages


def zipped(pickle: bytes, storages: Mapping[str, int], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as made:
        made.writestr("archive/data.pkl", pickle, compression)
        made.writestr("archive/version", b"3\n")
        for key, size in storages.items():
            made.writestr(f"archive/data/{key}", bytes(size))
    return stream.getvalue()


def nested(depth: int) -> bytes:
    """[[[…]]]"""
    return b"]" * depth + b"a" * (depth - 1)


def doubled(levels: int) -> bytes:
    """A tuple of the same tuple twice, and so on: small in memory, endless to walk."""
    return b")" + b"2\x86" * levels


def odd_pickle(rng: Random, name: str, shape: tuple[int, ...]) -> bytes:
    """One value, or key, that torch.save never writes."""
    good = tensor("0", shape)
    choices = (
        dictionary({name: nested(rng.choice((10, 1000, 100_000)))}),
        nested(rng.choice((10, 1000, 100_000))),
        dictionary({name: doubled(rng.choice((3, 40, 2000)))}),
        b"}(" + doubled(rng.choice((3, 35))) + good + b"u",
        b"}(" + b"]" + good + b"u",
        b"}(" + b"}" + good + b"u",
        b"}(" + good + good + b"u",
        b"}(" + integer(1) + good + b"u",
        b"}(N" + good + b"u",
        b"}(" + b"\x8b" + (2000).to_bytes(4, "little") + b"\x7f" * 2000 + good + b"u",
        b"}(" + b"\x8b" + (2_000_000).to_bytes(4, "little") + b"\x7f" * 2_000_000 + good + b"u",
        dictionary({name: good + b"r" + b"\xff\xff\xff\x0f"}),
        dictionary({name: good + b"r" + b"\xff\xff\xff\xff"}),
        dictionary({name: b"\x8e" + (1 << 60).to_bytes(8, "little") + b"x"}),
        dictionary({name: b"\x96" + (1 << 33).to_bytes(8, "little") + b"x"}),
        dictionary({name: b"\x8d" + (1 << 62).to_bytes(8, "little") + b"x"}),
        b"\x95" + (1 << 50).to_bytes(8, "little") + dictionary({name: good}),
        dictionary({name: good}).replace(b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem"),
        dictionary({name: good}).replace(b"collections\nOrderedDict", b"_io\nBytesIO"),
        dictionary({name: good}).replace(b"collections\nOrderedDict\n)", b"_io\nBytesIO\n(" + b"J\xff\xff\xff\x7ft"),
        dictionary({name: good}).replace(
            b"collections\nOrderedDict\n)", b"_codecs\nencode\n(" + text("a") + text("zlib") + b"t"
        ),
        dictionary({name: good}).replace(b"collections\nOrderedDict\n)R", b"ctorch\nSize\n(" + sizes((1, 2)) + b"tR"),
        dictionary({name: good}).replace(sizes(shape), sizes((-1, *shape[1:]))),
        dictionary({name: good}).replace(sizes(shape), sizes((2**31 - 1, *shape[1:]))),
        dictionary({name: good}).replace(sizes(shape), b")"),
        dictionary({name: good}).replace(sizes(shape), b"N"),
        dictionary({name: good}).replace(sizes(shape), text("12")),
        dictionary({name: good}).replace(sizes(shape), b"(G\x7f\xf0\x00\x00\x00\x00\x00\x00t"),
        dictionary({name: good}).replace(sizes(shape), b"(G\x7f\xf8\x00\x00\x00\x00\x00\x00t"),
        dictionary({name: good}).replace(sizes(shape), b"(" + text("9" * 5000) + b"t"),
        dictionary({name: good}).replace(b"FloatStorage", b"ByteStorage"),
        dictionary({name: good}).replace(b"FloatStorage", b"OddStorage"),
        dictionary({name: good}).replace(text("storage"), text("module")),
        dictionary({name: good}).replace(text("0"), text("../0")),
        dictionary({name: good}).replace(text("0"), text("²")),
        dictionary({name: good}).replace(text("0"), text("9" * 5000)),
        dictionary({name: good}).replace(text("0"), b"]"),
        dictionary({name: good}).replace(text("cpu") + integer(count(shape)), text("cpu") + text("x")),
        dictionary({name: good}).replace(
            text("cpu") + integer(count(shape)), text("cpu") + b"G\x7f\xf8\x00\x00\x00\x00\x00\x00"
        ),
        dictionary({name: good}).replace(
            text("cpu") + integer(count(shape)), text("cpu") + b"G\x7f\xf0\x00\x00\x00\x00\x00\x00"
        ),
        dictionary({name: good + b"}b"}),
        dictionary({name: good + b"}" + text("shape") + integer(1) + b"sb"}),
        dictionary({name: good, "model.x\x1b[31m": good, "model.\x9b": good}),
        dictionary({"model.language_model.encoder.layers.99999.dense.weight": good}),
        dictionary({"model.language_model.encoder.layers.9999.self_attention.dense.weight": good}),
        dictionary({name: tensor("0", (1,) * 200)}),
        dictionary({name: tensor("0", ())}),
        dictionary({name: tensor("0", (0,))}),
        dictionary({}),
        b"\x8c\x00" * 10,
        b"cbuiltins\neval\n(" + text("1") + b"tR",
        b"(i__main__\nx\n",
        b"(" * 100_000,
        b"N" + b"0" * 10,
        b"t",
        b"Vopen",
        b"I" + b"9" * 5000 + b"\n",
        b"L" + b"9" * 5000 + b"L\n",
        b"F1e999\n",
        b"S'\\x'\n",
        b"U\x05\xff\xfe\xfd\xfc\xfb",
        b"X\x03\x00\x00\x00\xed\xa0\x80",
        b"\x82\x01",
        b"h\x05",
        b"P0\n",
        b"\x97",
        b"\x98",
        b"\xfe",
    )
    return pickled(rng.choice(choices))


def count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
