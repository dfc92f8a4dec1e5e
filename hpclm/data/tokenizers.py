"""Byte-level BPE on the `tokenizers` library: trained here, GPT-2's two files, or any tokenizer.json; and SentencePiece
models with the package of that name."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError, DataError
from hpclm.core.files import write_json
from hpclm.core.spec import TokenizerSpec
from hpclm.data import tiktoken_files
from hpclm.formats.archive import Archive
from hpclm.formats.checkpoint_manifest import is_altered
from hpclm.formats.huggingface.architectures import GENERATION_CONFIG, end_token_id, is_huggingface
from hpclm.formats.nemo import archive_tokenizer as archived
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.formats.sentencepiece_model import SUFFIX

END = "<|endoftext|>"
# Other end tokens, in tokenizers that are not GPT-2's
_END_NAMES = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]")
_BEGIN_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]")


AnyTokenizer = TypeVar("AnyTokenizer", bound="Tokenizer")


class Tokenizer:
    """Text to ids and back.

    Attributes:
        vocab_size: the largest id plus one.
        special_ids: special tokens by their text, which `encode` never returns.
        eos_id, bos_id, pad_id: special tokens; where a vocabulary has no begin or padding token of its own, the end
            token is used instead, as in GPT-2.
        names_end: whether the end token was named by a model's configuration.
    """

    names_end = False

    def __init__(self, backend: Backend, source: str) -> None:
        self.backend = backend
        # special tokens in a user's text are text: a row must not be able to end or forge a prompt
        self.backend.encode_special_tokens = True
        # published files often pad and truncate to a fixed length
        self.backend.no_padding()
        self.backend.no_truncation()
        # ids may have gaps, and the model's table must have a row for the largest
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        eos = self._first(_END_NAMES)
        if eos is None:
            raise DataError(f"{source}: no end token ({', '.join(_END_NAMES)}) in the vocabulary")
        self.eos_id = eos
        self.bos_id = self._either(_BEGIN_NAMES)
        added = backend.get_added_tokens_decoder()
        self.special_ids = {token.content: number for number, token in added.items() if token.special}
        self.pad_id = self._either(_PAD_NAMES)

    def _first(self, names: Iterable[str]) -> int | None:
        ids = (self.backend.token_to_id(name) for name in names)
        return next((number for number in ids if number is not None), None)

    def _either(self, names: Iterable[str]) -> int:
        found = self._first(names)
        return self.eos_id if found is None else found

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch(texts, add_special_tokens=False)]

    def beginning(self, text: str, count: int) -> str:
        """The first whole characters of `text`, of at most its first `count` tokens."""
        if count <= 0:
            return ""
        offsets = self.backend.encode(text, add_special_tokens=False).offsets
        return text[: offsets[count][0]] if count < len(offsets) else text

    def decode(self, ids: Iterable[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def shown(self, ids: Iterable[int]) -> str:
        """The text with special tokens in it, for people."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def check_fits(self, rows: int) -> None:
        """Raises DataError where a model's table of `rows` has no row for some id."""
        if self.vocab_size > rows:
            raise DataError(
                f"the tokenizer has {self.vocab_size} entries, the model's embedding table only {rows}; set "
                f"model.vocab_size to {self.vocab_size} or leave it out, "
                "or give the tokenizer the model was trained with"
            )

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(CheckpointFolder(folder).tokenizer))
        self.save_end(folder)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer saved in a folder. Raises DataError."""
        paths = CheckpointFolder(folder)
        chosen = paths.sentencepiece if paths.sentencepiece.is_file() else paths.tokenizer
        if chosen.is_file() and is_altered(chosen):
            raise DataError(f"{chosen}: its contents have changed since the checkpoint was written; copy it again")
        return cls.from_json(chosen).ended_as_in(folder)

    @classmethod
    def from_json(cls, path: Path) -> Tokenizer:
        if not path.is_file():
            raise DataError(f"{path}: does not exist")
        if path.suffix == SUFFIX:
            return SentencePieceTokenizer.read(path)
        if path.suffix == tiktoken_files.SUFFIX:
            return cls(tiktoken_files.read_tiktoken(path), str(path))
        try:
            return cls(Backend.from_file(str(path)), str(path))
        except DataError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path}: not a tokenizer.json ({error})") from error

    @classmethod
    def from_bpe(cls, vocab: Path, merges: Path) -> Tokenizer:
        """GPT-2's `vocab.json` and `merges.txt`."""
        for path in (vocab, merges):
            if not path.is_file():
                raise DataError(f"{path}: does not exist")
        try:
            model = models.BPE.from_file(str(vocab), str(merges))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{vocab}, {merges}: not a GPT-2 vocabulary and its merges ({error})") from error
        return cls(_byte_level(model), str(vocab))

    @classmethod
    def from_archive(cls, path: Path) -> Tokenizer:
        """The tokenizer in a NeMo archive. Raises CheckpointError."""
        with Archive(path) as archive:
            which = archived.kind(archive)
            if which is None:
                raise CheckpointError(f"{path}: {archived.absent(archive)}")
            if which == "sentencepiece":
                return SentencePieceTokenizer(archived.sentencepiece(archive), str(path))
            if which == "json":
                member = archive.ending("tokenizer.json")
                assert member is not None
                return cls(Backend.from_str(archive.read(member).decode()), str(path))
            vocabulary = archived.read_json(archive, "vocab.json")
            model = models.BPE(vocab=vocabulary, merges=archived.merges(archive))
        return cls(_byte_level(model), str(path))

    @classmethod
    def from_huggingface(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a folder in transformers' format, with the end token of its generation_config.json or
        config.json. Raises DataError."""
        paths = CheckpointFolder(folder)
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        if paths.tokenizer.is_file() or not (vocab.is_file() or paths.sentencepiece.is_file()):
            found = cls.from_json(paths.tokenizer)
        else:
            found = cls.from_json(paths.sentencepiece) if paths.sentencepiece.is_file() else cls.from_bpe(vocab, merges)
        return found.ended_as_in(folder)

    def ended_as_in(self: AnyTokenizer, folder: Path) -> AnyTokenizer:
        """With the end token that a model's configuration names, where it names one."""
        end = end_token_id(folder)
        if end is not None and end < self.vocab_size:
            self.eos_id, self.names_end = end, True
        return self

    def save_end(self, folder: Path) -> None:
        """What `ended_as_in` reads, where the vocabulary alone would give another end token."""
        if self.names_end:
            write_json(folder / GENERATION_CONFIG, {"eos_token_id": self.eos_id})

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a byte-level BPE of at most `vocab_size` entries, the end token among them."""
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend, "the trained tokenizer")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226), as NeMo's sentencepiece_tokenizer.py uses it.

    Control symbols in a text are text.
    """

    def __init__(self, model: bytes, source: str) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise DataError(f"{source}: is a SentencePiece model; install the package sentencepiece") from None
        self.model = model
        try:
            self.processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DataError(f"{source}: not a SentencePiece model ({error})") from None
        self.vocab_size = self.processor.get_piece_size()
        if self.processor.eos_id() < 0:
            raise DataError(f"{source}: no end token in the vocabulary")
        self.eos_id = self.processor.eos_id()
        self.bos_id = self._or_end(self.processor.bos_id())
        self.pad_id = self._or_end(self.processor.pad_id())
        special = (number for number in range(self.vocab_size) if self.processor.is_control(number))
        self.special_ids = {self.processor.id_to_piece(number): number for number in special}

    def _or_end(self, number: int) -> int:
        return self.eos_id if number < 0 else number

    def encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in self.processor.encode(texts)]

    def beginning(self, text: str, count: int) -> str:
        if count <= 0:
            return ""
        # offsets have another name in each release of the package; a longer text has, but for exceptions, more tokens
        first_too_long = bisect.bisect_right(
            range(len(text) + 1), count, key=lambda size: len(self.encode(text[:size]))
        )
        return text[: first_too_long - 1]

    def decode(self, ids: Iterable[int]) -> str:
        control = set(self.special_ids.values())
        return str(self.processor.decode([number for number in ids if number not in control]))

    def shown(self, ids: Iterable[int]) -> str:
        pieces = [self.processor.id_to_piece(number) for number in ids]
        return "".join(pieces).replace("\u2581", " ")

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        CheckpointFolder(folder).sentencepiece.write_bytes(self.model)
        self.save_end(folder)

    @classmethod
    def read(cls, path: Path) -> SentencePieceTokenizer:
        """The model in a file. Raises DataError."""
        return cls(path.read_bytes(), str(path))


def _byte_level(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return backend


def load_tokenizer(spec: TokenizerSpec, base: Path | None) -> Tokenizer:
    """The tokenizer of a stage that does not train one. Raises DataError where its files are missing or broken.

    Args:
        base: the base model's checkpoint, for `kind: base`.
    """
    if spec.kind == "bpe":
        assert spec.vocab_file is not None
        assert spec.merges_file is not None
        return Tokenizer.from_bpe(Path(spec.vocab_file), Path(spec.merges_file))
    if spec.kind == "json":
        assert spec.tokenizer_file is not None
        return Tokenizer.from_json(Path(spec.tokenizer_file))
    assert base is not None
    if is_huggingface(str(base)):
        return Tokenizer.from_huggingface(base)
    return Tokenizer.from_archive(base) if is_archive(str(base)) else Tokenizer.load(base)
