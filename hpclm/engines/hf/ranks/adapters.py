"""PEFT's adapters: attached to a model, written in PEFT's format, and read back to see that they are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hpclm.core.errors import CheckpointError, DataError
from hpclm.core.files import write_json
from hpclm.core.fine_tune_spec import LoraSpec, MethodSpec, VirtualTokensSpec
from hpclm.engines.hf.ranks import divided_layers, saved_modules
from hpclm.formats.huggingface.architectures import ADAPTER, ADAPTER_CONFIG

CONFIG, WEIGHTS = ADAPTER_CONFIG, ADAPTER
_NAME = "default"


@dataclass
class Adapter:
    """What is trained beside a frozen model.

    Attributes:
        config: PEFT's, as JSON.
        virtual_tokens: computes their embeddings, [v, h]; None for LoRA.
    """

    config: dict[str, Any]
    virtual_tokens: VirtualTokens | None = None


def attach(model: Any, method: MethodSpec, base: str, tokenizer: Any, seed: int, *, autocast: bool = True) -> Adapter:
    """Freeze the model and add what `method` trains, in fp32. The same seed gives the same values on every rank.

    Args:
        autocast: whether passes run under torch's autocast where the model is below fp32.

    Raises DataError for targets that the model does not have.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(seed)
    if method.method == "lora":
        made = Adapter(_attach_lora(model, method.lora, base))
        if autocast:
            _keep_input_dtype(model)
        return made
    return _virtual(model, method, base, tokenizer)


def _attach_lora(model: Any, lora: LoraSpec, base: str) -> dict[str, Any]:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    targets: Any = list(lora.targets)
    if not targets:
        kind = model.config.model_type
        if kind not in KNOWN:
            raise DataError(f"PEFT has no default targets for {kind}; give fine_tune.lora.targets, as [all-linear]")
        targets = list(KNOWN[kind])
    if targets == ["all-linear"]:
        targets = _linear_names(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # PEFT takes any number
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=list(lora.modules_to_save) or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        fan_in_fan_out=_is_transposed(model),
        base_model_name_or_path=base,
    )
    divided_layers.install()
    try:
        with saved_modules.copied_whole():
            inject_adapter_in_model(config, model)
    except ValueError as error:  # PEFT's word for targets that match nothing
        raise DataError(f"fine_tune.lora.targets: {str(error).splitlines()[0]}") from None
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
    config.inference_mode = True
    return _plain(config)


def _keep_input_dtype(model: Any) -> None:
    """Autocast casts an adapter's weights to what is computed in. PEFT casts its input to fp32 before, and that copy
    would be held until the backward pass."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def _linear_names(model: Any) -> list[str]:
    """Endings of the names of all linear layers but the output's."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not output
        }
    )


def _is_transposed(model: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


class VirtualTokens(nn.Module):
    """PEFT's prompt table or prompt encoder; gives [v, h]."""

    def __init__(self, table: nn.Module, count: int) -> None:
        super().__init__()
        self.table = table
        self.count = count

    def forward(self) -> Tensor:
        device = next(self.table.parameters()).device
        found: Tensor = self.table(torch.arange(self.count, device=device)[None])
        return found[0]


class FixedTokens(nn.Module):
    """Virtual tokens that are trained no more, [v, h]."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)

    def forward(self) -> Tensor:
        found: Tensor = self.get_buffer("values")
        return found


def _virtual(model: Any, method: MethodSpec, base: str, tokenizer: Any) -> Adapter:
    from peft import PromptEncoder, PromptEncoderConfig, PromptTuningConfig
    from peft.tuners import PromptEmbedding

    wanted = method.virtual_tokens
    words = model.get_input_embeddings()
    hidden = int(words.embedding_dim)
    heads = int(getattr(model.config, "num_attention_heads", 1))
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": wanted.count, "token_dim": hidden,
              "num_transformer_submodules": 1, "num_attention_heads": heads,
              "num_layers": int(getattr(model.config, "num_hidden_layers", 1)),
              "base_model_name_or_path": base}  # fmt: skip
    if method.method == "p-tuning":
        config: Any = PromptEncoderConfig(
            **common,
            encoder_reparameterization_type=wanted.encoder.upper(),
            encoder_hidden_size=wanted.encoder_hidden or hidden,
            encoder_num_layers=wanted.encoder_layers,
            encoder_dropout=wanted.encoder_dropout,
        )
        table: Any = PromptEncoder(config)  # type: ignore[no-untyped-call]
    else:
        config = PromptTuningConfig(**common)
        table = PromptEmbedding(config, words)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            table.embedding.weight.copy_(_first_values(words, wanted, tokenizer))
    config.inference_mode = True
    virtual = VirtualTokens(table.float(), wanted.count)
    return Adapter(_plain(config), virtual)


def _first_values(words: Any, wanted: VirtualTokensSpec, tokenizer: Any) -> Tensor:
    """Embeddings of the text's tokens, repeated or cut; or of words drawn at random."""
    if wanted.init_text is None:
        ids = torch.randint(0, words.num_embeddings, (wanted.count,))
    else:
        found = tokenizer(wanted.init_text, add_special_tokens=False)["input_ids"]
        if not found:
            raise DataError("fine_tune.virtual_tokens.init_text has no token; write a text")
        ids = torch.tensor((found * wanted.count)[: wanted.count])
    weight = words.weight.detach()
    whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return whole[ids.to(whole.device)].float()


def _plain(config: Any) -> dict[str, Any]:
    """JSON-ready, in an order of its own each time the same."""
    text = json.dumps(config.to_dict(), default=lambda one: sorted(one) if isinstance(one, set) else str(one))
    made: dict[str, Any] = json.loads(text)
    return dict(sorted(made.items()))


def peft_tensors(trained: Mapping[str, Tensor], virtual: VirtualTokens | None) -> dict[str, Tensor]:
    """Trained tensors by PEFT's names (peft/utils/save_and_load.py): the adapter's name is left out; of virtual tokens
    the table that their encoder computes."""
    if virtual is not None:
        with torch.no_grad():
            training = virtual.training
            virtual.eval()
            table = virtual().detach().cpu().clone()
            virtual.train(training)
        return {"prompt_embeddings": table}
    found = {}
    for name, value in trained.items():
        plain = name.replace(f".modules_to_save.{_NAME}.", ".").replace(f".{_NAME}.", ".")
        plain = saved_name(plain.removesuffix(f".{_NAME}"))
        found[f"base_model.model.{plain}"] = value
    return found


def saved_name(name: str) -> str:
    """PEFT saves DoRA's magnitudes without the name of their tensor."""
    return name.removesuffix(".weight") if name.endswith(".lora_magnitude_vector.weight") else name


def write(folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor], *, trained: bool) -> None:
    """adapter_config.json and adapter_model.safetensors, which are then opened again.

    Args:
        trained: whether steps have been taken, so that it must not be as it began.

    Raises CheckpointError for one that is empty.
    """
    from safetensors.torch import save_file

    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    write_json(folder / CONFIG, config)
    wrong = emptiness(folder, {name: tuple(one.shape) for name, one in tensors.items()}, trained=trained)
    if wrong is not None:
        raise CheckpointError(f"{folder}: the adapter was not saved: {wrong}")


def emptiness(folder: Path, shapes: Mapping[str, tuple[int, ...]], *, trained: bool) -> str | None:
    """What an adapter's file lacks of these tensors, or None. Untrained, one factor of each pair is zeros; DoRA's
    magnitudes and whole modules beside them say nothing."""
    zeros = [name for name in shapes if ".lora_B" in name or name.endswith(".lora_embedding_A")] or list(shapes)
    moved = False
    with safe_open(str(folder / WEIGHTS), framework="pt") as stored:
        names = set(stored.keys())
        for name, shape in shapes.items():
            if name not in names:
                return f"{name} is missing"
            value = stored.get_tensor(name)
            if tuple(value.shape) != shape or not value.numel():
                return f"{name} has shape {list(value.shape)}, not {list(shape)}"
            if not torch.isfinite(value).all():
                return f"{name} has values that are no numbers"
            moved = moved or (name in zeros and bool(value.any()))
    return "every value that begins as zero is zero still" if trained and not moved else None
