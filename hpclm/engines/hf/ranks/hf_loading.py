"""Models and tokenizers of transformers, from a folder: nothing is fetched, no pickle is read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hpclm.core import heartbeat
from hpclm.core.errors import CheckpointError
from hpclm.core.fine_tune_spec import HuggingFaceSpec
from hpclm.data.ranks.model_tokenizer import load_tokenizer as load_tokenizer
from hpclm.engines.hf.ranks import document_attention, quantized
from hpclm.formats.huggingface.weights import stored_tensors
from hpclm.formats.ranks.checkpoint_store import WholeTensors


def empty_model(folder: Path, spec: HuggingFaceSpec) -> Any:
    """The model of a folder's config.json; its parameters have no memory, its buffers their values."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    remote = spec.remote_code
    if spec.attention == document_attention.NAME:
        document_attention.register()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=remote)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config,
                attn_implementation=spec.attention,
                trust_remote_code=remote,
                dtype=torch.float32,
            )
    except Exception as error:
        raise CheckpointError(f"{folder}: the model cannot be built ({_first_line(error)})") from error
    if spec.quantization != "none":
        quantized.use_four_bits(model)
    model.tie_weights()
    model.config.use_cache = False
    return model


class WeightFiles:
    """The tensors of a folder in transformers' format, or of a checkpoint of this engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if _is_checkpoint(folder):
            self.whole: WholeTensors | None = WholeTensors(folder)
            self.names = {name for name in self.whole.stored if not name.startswith("optimizer.")}
            return
        self.whole = None
        self.stored = stored_tensors(folder)
        self.names = set(self.stored)
        self.open: dict[str, Any] = {}

    def __call__(self, name: str) -> Tensor:
        """A whole tensor. Raises CheckpointError."""
        heartbeat.beat()
        return self._of_file(name) if self.whole is None else self.whole.tensor(name)

    def _of_file(self, name: str) -> Tensor:
        file = self.stored[name].file
        try:
            if file not in self.open:
                self.open[file] = safe_open(str(self.folder / file), framework="pt")
            found: Tensor = self.open[file].get_tensor(name)
        except Exception as error:  # safetensors raises its own exceptions for a damaged file
            raise CheckpointError(f"{self.folder / file}: cannot be read ({error}); it is damaged") from error
        return found


def _is_checkpoint(folder: Path) -> bool:
    from hpclm.core.checkpoint_layout import CheckpointFolder

    return CheckpointFolder(folder).manifest.exists()


class Weights:
    """Gives a model's parameters memory and their values, module after module.

    Args:
        model: from `empty_model`.
        device: where the values go.

    Raises CheckpointError for a tensor that the files lack.
    """

    def __init__(self, model: Any, files: Callable[[str], Tensor], names: Container[str], device: torch.device) -> None:
        self.files, self.device = files, device
        prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        shared: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            shared.setdefault(id(parameter), []).append(name)
        self.stored: dict[str, str] = {}
        for group in shared.values():
            # some files leave the model's prefix out, and one of several names of a tied weight
            tried = (one for name in group for one in (name, name.removeprefix(prefix), prefix + name))
            found = next((one for one in tried if one in names), None)
            if found is None:
                raise CheckpointError(f"contains no tensor {group[0]}, which {type(model).__name__} needs")
            self.stored.update(dict.fromkeys(group, found))
        for name, buffer in model.named_buffers():
            if name in names:
                buffer.copy_(files(name))
        for module in model.modules():
            module._buffers.update({name: one.to(device) for name, one in module._buffers.items() if one is not None})

    def fill(self, named: Iterable[tuple[str, nn.Module]], dtype: torch.dtype) -> None:
        """Of these modules (by their names in the model) the parameters that have no memory yet."""
        for prefix, module in named:
            for path, part in module.named_modules():
                for own, parameter in list(part._parameters.items()):
                    if parameter is None or not parameter.is_meta:
                        continue
                    name = ".".join(piece for piece in (prefix, path, own) if piece)
                    part._parameters[own] = self._made(name, parameter, dtype)

    def _made(self, name: str, parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        value = self.files(self.stored[name])
        if tuple(value.shape) != tuple(parameter.shape):
            raise CheckpointError(
                f"{self.stored[name]} has shape {list(value.shape)}, and config.json needs {list(parameter.shape)}"
            )
        if quantized.is_packed(parameter):
            return quantized.packed(parameter, value.to(dtype), self.device)
        return nn.Parameter(value.to(device=self.device, dtype=dtype, copy=True), requires_grad=parameter.requires_grad)


def weights_of(model: Any, folder: Path, device: torch.device, *, remote_code: bool = False) -> Weights:
    """The values of an empty model. Where a file's names are not the model's (transformers joins or renames some as it
    loads), transformers loads the whole model first. Raises CheckpointError."""
    files = WeightFiles(folder)
    try:
        return Weights(model, files, files.names, device)
    except CheckpointError as error:
        if _is_checkpoint(folder):
            raise CheckpointError(f"{folder}: {error}") from None
    whole = _loaded(folder, remote_code=remote_code)
    try:
        return Weights(model, whole.__getitem__, whole, device)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def _loaded(folder: Path, *, remote_code: bool) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=remote_code,
            dtype="auto",
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded ({_first_line(error)})") from error
    model, told = loaded
    missing = sorted(told["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder}: contains no tensor {missing[0]}, which {type(model).__name__} needs")
    return dict(model.state_dict())


def blocks_of(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The layers that are sharded and recomputed each by itself (transformers' `_no_split_modules`)."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    for name, module in model.named_modules():
        if type(module).__name__ in kinds:
            yield name, module


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
