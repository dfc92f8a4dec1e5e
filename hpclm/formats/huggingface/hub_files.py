"""Which files of a repository on the Hub are fetched: those that training and answering read, and no pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from hpclm.core.errors import CheckpointError, DataError
from hpclm.formats.huggingface.architectures import ADAPTER, ADAPTER_CONFIG, CONFIG
from hpclm.formats.huggingface.weights import INDEX, SINGLE

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".tflite", ".ot", ".nemo")
# Configurations, vocabularies and merges, SentencePiece and tiktoken models, chat templates
_SMALL = (".json", ".txt", ".model", ".tiktoken", ".jinja")
_TERMS = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# What a training leaves behind, and the original layout's parameters
_UNUSED = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "params.json"}
_TEMPLATES = "additional_chat_templates"
_DATA = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
_BESIDE_DATA = {"dataset_infos.json", "dataset_info.json"}
# git's SHA-1 of a small file, the SHA-256 of one in large-file storage
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository, with `/`.
        size: bytes.
        digest: its ETag, in hex: SHA-256 of a file in large-file storage (64 digits), else git's SHA-1 (40).
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Choice:
    """The files to fetch. `index` names the shards of the weights, which are then still to be added."""

    files: list[HubFile]
    index: HubFile | None = None


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _is_plain(name: str) -> bool:
    """Whether a name from a server stays below the folder that it is joined to."""
    return bool(name) and not any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in name.split("/"))


def model_files(asked: str, files: Iterable[HubFile], *, remote_code: bool) -> Choice:
    """Raises CheckpointError where a repository has no safetensors or no configuration."""
    named = {file.name: file for file in files if _is_plain(file.name)}
    weights = next((name for name in (SINGLE, INDEX, ADAPTER) if name in named), None)
    if weights is None:
        raise CheckpointError(_no_weights(asked, named))
    config = ADAPTER_CONFIG if weights == ADAPTER else CONFIG
    if config not in named:
        raise CheckpointError(f"{asked}: has no {config}, so it is no model of transformers; is the name right?")
    chosen = [file for name, file in named.items() if name == weights or _is_small(name, remote_code=remote_code)]
    return Choice(sorted(chosen, key=lambda file: file.name), named[INDEX] if weights == INDEX else None)


def _is_small(name: str, *, remote_code: bool) -> bool:
    path = PurePosixPath(name)
    if str(path.parent) == _TEMPLATES:
        return path.suffix == ".jinja"
    if len(path.parts) > 1 or name.startswith(".") or name in _UNUSED or name.endswith(".index.json"):
        return False
    return path.suffix in _SMALL or path.stem.upper() in _TERMS or (remote_code and path.suffix == ".py")


def _no_weights(asked: str, named: Mapping[str, HubFile]) -> str:
    pickles = sorted(name for name in named if name.endswith(_PICKLES) and not name.startswith("training_args"))
    if pickles:
        repo = asked.partition("@")[0]
        return (
            f"{asked}: its weights are pickles only ({pickles[0]}), and loading a pickle can run any code. Take a "
            "revision with safetensors (the Hub's bot offers one as a pull request: @refs/pr/N), or convert it where "
            'you trust it: python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
            f"[x.from_pretrained('{repo}').save_pretrained('FOLDER') for x in (M, T)]\""
        )
    others = sorted(name for name in named if name.endswith((*_OTHER_WEIGHTS, ".safetensors")))
    found = f"has {others[0]}, but not" if others else "has neither"
    return f"{asked}: {found} {SINGLE} or {INDEX}, which transformers' models have; look for the original model"


def shards(asked: str, names: Iterable[str], files: Iterable[HubFile]) -> list[HubFile]:
    """The files that an index names. Raises CheckpointError."""
    named = {file.name: file for file in files if _is_plain(file.name)}
    found = []
    for name in names:
        if name not in named or not name.endswith(".safetensors"):
            raise CheckpointError(f"{asked}: {INDEX} names {name!r}, which is no safetensors file of this revision")
        found.append(named[name])
    return found


def data_files(asked: str, files: Iterable[HubFile]) -> Choice:
    """Parquet, JSON lines and JSON, in whatever folder. Raises DataError where there are none."""
    chosen = [file for file in files if _is_plain(file.name) and _is_data(file.name)]
    if not chosen:
        raise DataError(f"{asked}: has no parquet, jsonl or json file; see on its page what it offers instead")
    return Choice(sorted(chosen, key=lambda file: file.name))


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return name.endswith(_DATA) and path.name not in _BESIDE_DATA and not any(p.startswith(".") for p in path.parts)
