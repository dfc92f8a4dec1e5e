"""The model that a stage starts from: a folder in transformers' format, or what another stage has tuned."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import CheckpointError
from hpclm.core.files import open_file, read_object, write_text
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.ranks.seeds import named_seed
from hpclm.engines.hf.ranks import adapters
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.hf_loading import Weights, empty_model, load_tokenizer, weights_of
from hpclm.engines.hf.ranks.hf_stage import HfStage
from hpclm.formats.huggingface.weights import stored_tensors
from hpclm.formats.ranks.checkpoint_manager import resolve

_END = 1 << 20
# What stands beside the weights: configuration, tokenizer, chat template, generation's defaults.
_BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.tiktoken")
_NOT_BESIDE = ("*.index.json", adapters.CONFIG, "trainer_state.json")


@dataclass
class Started:
    """A model without weights yet, and where they are.

    Attributes:
        folder: the base model's.
        digest: of its weights, see `digest`.
        vocabulary: entries of the embedding table.
    """

    folder: Path
    model: Any
    weights: Weights
    tokenizer: Any
    digest: str
    vocabulary: int
    remote_code: bool = False
    own_chat_template: bool = False
    adapter: adapters.Adapter | None = field(default=None)

    def attach(self, spec: FineTuneStageSpec, group: DataGroup) -> nn.Module | None:
        """What the method trains, once the weights are there. Returns the virtual tokens of prompt methods."""
        if spec.method.method == "full":
            return None
        seed = named_seed(spec.trainer.seed, "adapter") % (1 << 31)
        # DeepSpeed turns autocast off
        autocast = not spec.sharding.strategy.startswith("zero")
        self.adapter = adapters.attach(
            self.model, spec.method, str(self.folder), self.tokenizer, seed, autocast=autocast
        )
        virtual = self.adapter.virtual_tokens
        return None if virtual is None else virtual.to(group.device)

    def write_configuration(self, folder: Path) -> None:
        """config.json, the tokenizer's files and the rest that a folder in transformers' format has."""
        for path in beside(self.folder, code=self.remote_code):
            shutil.copyfile(path, folder / path.name)
        if self.own_chat_template:
            write_text(folder / "chat_template.jinja", self.tokenizer.chat_template)


def beside(folder: Path, *, code: bool = False) -> list[Path]:
    """The files of a model's folder that are no weights; `code`: its Python files too."""
    found = {
        path for pattern in (*_BESIDE, *(["*.py"] if code else [])) for path in folder.glob(pattern) if path.is_file()
    }
    found -= {CheckpointFolder(folder).manifest, CheckpointFolder(folder).fine_tuned}
    return sorted(path for path in found if not any(path.match(pattern) for pattern in _NOT_BESIDE))


def model_folder(base: str) -> Path:
    """The folder of a base model: as it is, or the best (or else the last) checkpoint of a stage.

    Raises CheckpointError.
    """
    folder = Path(base)
    if (folder / "config.json").is_file() or (folder / adapters.CONFIG).is_file():
        return folder
    return resolve(folder, prefer="best")


def full_model(base: str) -> Path:
    """The same, of a whole model. Raises CheckpointError for an adapter alone."""
    folder = model_folder(base)
    method = (read_object(CheckpointFolder(folder).fine_tuned) or {}).get("method", "full")
    if method != "full" or (folder / adapters.CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: is an adapter ({method}); join it with its model first: hpclm model merge {folder} OUT"
        )
    return folder


def start(stage: HfStage) -> Started:
    """The base model of a stage that trains."""
    spec = stage.spec
    folder = full_model(spec.base)
    tokenizer = load_tokenizer(folder, remote_code=spec.huggingface.remote_code, chat_template=spec.data.chat_template)
    model = empty_model(folder, spec.huggingface)
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, the model {vocabulary} embeddings; give the "
            "tokenizer that the model was trained with"
        )
    weights = weights_of(model, folder, stage.group.device, remote_code=spec.huggingface.remote_code)
    return Started(
        folder, model, weights, tokenizer, digest(folder), vocabulary,
        remote_code=spec.huggingface.remote_code, own_chat_template=spec.data.chat_template is not None,
    )  # fmt: skip


def digest(folder: Path) -> str:
    """Of a model's weights: the header, the size and the last MiB of each file, for all of them would take minutes.

    A checkpoint's manifest has the checksum of every file, and is what counts there.
    """
    made = hashlib.sha256()
    manifest = CheckpointFolder(folder).manifest
    if manifest.is_file():
        made.update(manifest.read_bytes())
        return made.hexdigest()
    for name in sorted({one.file for one in stored_tensors(folder).values()}):
        path = folder / name
        with open_file(path) as stream:
            size = int.from_bytes(stream.read(8), "little")
            made.update(stream.read(size))
            stream.seek(max(0, path.stat().st_size - _END))
            made.update(stream.read())
        made.update(f"{name} {path.stat().st_size}".encode())
    return made.hexdigest()
