"""What a folder in transformers' format says of its model, of whatever architecture; read from config.json, from the
headers of its weights and from its tokenizer's files. Without torch or transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file, read_json
from hpclm.formats.checkpoint_manifest import read_manifest
from hpclm.formats.huggingface.architectures import ADAPTER_CONFIG, read_config
from hpclm.formats.huggingface.tuned_folders import tuned_folder
from hpclm.formats.huggingface.weights import Stored, stored_tensors
from hpclm.formats.safetensors_header import declared_size

_TOKENIZER, _TOKENIZER_CONFIG, _CHAT_TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPECIAL_TOKENS = "special_tokens_map.json"
# Classes that know no end token of their own; others have one without a file that says so.
_PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
# The first line of what git leaves where the file itself was not fetched (git-lfs, docs/spec.md).
_POINTER = b"version https://git-lfs"
# Values of the smallest stored types that share a byte.
_VALUES_A_BYTE = 8
# Names of the same number in the configurations of different architectures.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
# In the stored names of what experts have; transformers joins these weights to one tensor a layer.
EXPERTS = ".experts."
_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


@dataclass(frozen=True)
class ModelFacts:
    """A model of a folder. Numbers that its configuration does not have are None.

    Attributes:
        parameters: of the whole model, each once; embeddings: of its largest matrix.
        query_width: of all heads together; key_width: of all key heads (values have the same). As wide as the hidden
            states where the weights do not tell.
        gated: whether the MLP has a gate; head_norms: whether queries and keys are normalised.
        adapter: what was asked about is this adapter for the model.
        matrices: names of modules with a matrix, which adapters may be attached to.
        remote_code: whether it needs Python files of its own.
        quantized: the method it is quantised by.
        largest_token: of the tokenizer's own vocabulary, without what was added to it.
    """

    folder: str
    model_type: str
    parameters: int
    embeddings: int
    matrices: frozenset[str]
    num_layers: int | None
    hidden_size: int | None
    ffn_hidden_size: int | None
    query_width: int | None
    key_width: int | None
    gated: bool
    head_norms: bool
    max_positions: int | None
    vocab_size: int | None
    remote_code: bool
    quantized: str | None
    has_fast_tokenizer: bool
    has_end_token: bool
    largest_token: int | None
    has_chat_template: bool
    end_is_padding: bool
    adapter: str | None = None

    @property
    def has_experts(self) -> bool:
        return any(EXPERTS in name for name in self.matrices)


def model_facts(folder: Path) -> ModelFacts:
    """Of a folder in transformers' format, of what engine hf has tuned, or of an adapter's model.

    Raises CheckpointError where the folder has no model, or one whose weights are pickles or incomplete.
    """
    tuned = tuned_folder(folder)
    if tuned is not None and tuned.base is not None:
        if tuned_folder(tuned.base) is not None and (tuned.base / ADAPTER_CONFIG).is_file():
            raise CheckpointError(f"{tuned.base}: is an adapter itself; join it with its model: hpclm model merge")
        return replace(model_facts(tuned.base), adapter=str(tuned.checkpoint))
    if tuned is not None:
        return _facts(tuned.checkpoint, _of_checkpoint(tuned.checkpoint))
    read_config(folder)  # what is no model's folder is said first
    for path in sorted([*folder.glob("*.safetensors"), folder / _TOKENIZER]):
        _check_pointer(path)
    stored = stored_tensors(folder)
    _check_sizes(folder, stored)
    return _facts(folder, stored)


def _of_checkpoint(folder: Path) -> dict[str, Stored]:
    """The weights of a checkpoint of ours, by its manifest."""
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    return {
        name: Stored("", name, names.get(one.dtype, one.dtype), tuple(one.shape))
        for name, one in read_manifest(folder).tensors.items()
        if not name.startswith("optimizer.")
    }


def _facts(folder: Path, stored: dict[str, Stored]) -> ModelFacts:
    config = read_config(folder)
    text: Mapping[str, Any] = config.get("text_config") if isinstance(config.get("text_config"), dict) else config  # type: ignore[assignment]
    told = _object(folder / _TOKENIZER_CONFIG)
    quantized = config.get("quantization_config")
    end, padding = _token(told.get("eos_token")), _token(told.get("pad_token"))
    return ModelFacts(
        folder=str(folder),
        model_type=str(config.get("model_type", "unknown"))[:60],
        parameters=sum(math.prod(one.shape) for one in stored.values()),
        embeddings=max((math.prod(one.shape) for one in stored.values() if len(one.shape) == 2), default=0),
        matrices=_matrices(stored),
        num_layers=_number(text, _LAYERS),
        hidden_size=_number(text, _HIDDEN),
        ffn_hidden_size=_number(text, _FFN),
        query_width=_rows(stored, "q_proj.weight"),
        key_width=_rows(stored, "k_proj.weight"),
        gated=any("gate" in name for name in stored),
        head_norms=any("q_norm" in name for name in stored),
        max_positions=_number(text, _POSITIONS),
        vocab_size=_number(text, ("vocab_size",)),
        remote_code="auto_map" in config,
        quantized=str(quantized.get("quant_method", "some method"))[:60] if isinstance(quantized, dict) else None,
        has_fast_tokenizer=(folder / _TOKENIZER).is_file(),
        has_end_token=_has_end(folder, told, end),
        largest_token=_largest_token(folder / _TOKENIZER),
        has_chat_template=bool(told.get("chat_template")) or (folder / _CHAT_TEMPLATE).is_file(),
        end_is_padding=end is not None and end == padding,
    )


def _rows(stored: Mapping[str, Stored], ending: str) -> int | None:
    """Of the first matrix with such a name."""
    return next((one.shape[0] for name, one in stored.items() if name.endswith(ending) and len(one.shape) == 2), None)


def _object(path: Path) -> Mapping[str, Any]:
    """Empty where there is no file."""
    try:
        found = read_json(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); copy the model again") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy the model again") from None
    if found is not None and not isinstance(found, dict):
        raise CheckpointError(f"{path}: is not a JSON object; copy the model again")
    return found or {}


def _check_pointer(path: Path) -> None:
    try:
        with open_file(path) as stream:
            begin = stream.read(len(_POINTER))
    except OSError:
        return
    if begin == _POINTER:
        what = "is a pointer of Git LFS, not the file; in its folder: git lfs pull, or fetch the model again"
        raise CheckpointError(f"{path}: {what}")


def _check_sizes(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Every file is as long as its header says, and no tensor larger than its file."""
    if not stored:
        raise CheckpointError(f"{folder}: its weights hold no tensor; copy the model again")
    sizes = {}
    for name in {one.file for one in stored.values()}:
        sizes[name], declared = (folder / name).stat().st_size, declared_size(folder / name)
        if sizes[name] < declared:
            shown = f"{declared} bytes" if declared < 10**18 else "more bytes than any disk has"
            raise CheckpointError(
                f"{folder / name}: has {sizes[name]} bytes, and its header says {shown}; copy the model again"
            )
    for one in stored.values():
        if min(one.shape, default=0) < 0 or math.prod(one.shape) > _VALUES_A_BYTE * sizes[one.file]:
            where = f"{folder / one.file}: tensor {one.name[:60]!r}"
            raise CheckpointError(f"{where} has a shape that the file's bytes cannot hold; copy the model again")


def _has_end(folder: Path, told: Mapping[str, Any], end: str | None) -> bool:
    if end is not None or told.get("tokenizer_class") not in _PLAIN_TOKENIZERS:
        return True
    return _token(_object(folder / _SPECIAL_TOKENS).get("eos_token")) is not None


def _largest_token(path: Path) -> int | None:
    """None where there is no file, or one that does not say. Raises CheckpointError for one that is no tokenizer."""
    model = _object(path).get("model")
    if model is None and not path.is_file():
        return None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: is not a tokenizer of the tokenizers library; copy the model again")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        return len(vocabulary) - 1
    found = vocabulary.values() if isinstance(vocabulary, dict) else ()
    return max((one for one in found if isinstance(one, int)), default=None)


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12:
            return value
    return None


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _matrices(stored: Mapping[str, Stored]) -> frozenset[str]:
    return frozenset(
        name.removesuffix(".weight") for name, one in stored.items() if len(one.shape) == 2 and name.endswith(".weight")
    )
