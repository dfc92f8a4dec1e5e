"""What PEFT asks of layers whose weights FSDP2 or ZeRO-3 has divided.

In the passes weights are whole where a layer computes. As adapters are attached, they are not: PEFT takes a divided
weight's shape for the layer's (0.18 to 0.20 always, newer releases where the mesh has names), and DoRA's first norms,
which are of whole weights (Liu et al. 2024, arXiv:2402.09353, equation 5), of the part.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from hpclm.engines.hf.ranks.whole_tensors import whole

_theirs: dict[str, Any] = {}


def install() -> None:
    """Have PEFT ask here (peft/tuners/lora/dora.py, peft/tuners/tuners_utils.py)."""
    from peft.tuners import tuners_utils
    from peft.tuners.lora import dora, layer

    if _theirs:
        return
    _theirs["weight"] = vars(dora)["dequantize_module_weight"]
    vars(dora)["dequantize_module_weight"] = _weight
    if hasattr(tuners_utils, "_get_in_out_features"):
        _theirs["widths"] = tuners_utils._get_in_out_features
        for module in (tuners_utils, layer):
            vars(module)["_get_in_out_features"] = _widths


def _widths(module: nn.Module) -> Any:
    """What a layer takes and gives."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return _theirs["widths"](module)


def _weight(module: nn.Module) -> Any:
    """Of a linear layer or an embedding, whole and not quantised. Collective where it is divided."""
    weight: Any = module.weight
    state = getattr(module, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(whole(weight.detach()).to(state.absmax.device), state)
    if isinstance(weight, DTensor):
        return whole(weight)
    if getattr(weight, "ds_numel", None) is not None and weight.numel() != weight.ds_numel:
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return _theirs["weight"](module)


def gathered_by_zero(model: nn.Module) -> None:
    """Have ZeRO-3 gather what a layer reads of others: an embedding its factors, which are no layers of their own, and
    each of DoRA's layers the weight and the factors."""
    import deepspeed

    for module in model.modules():
        for kind in ("lora_embedding_A", "lora_embedding_B"):
            for factor in getattr(module, kind, {}).values():
                deepspeed.zero.register_external_parameter(module, factor)
        for name, layer in getattr(module, "lora_magnitude_vector", {}).items():
            base: Any = module.get_base_layer()  # type: ignore[operator]
            factors = (_factor(module, kind, name) for kind in ("A", "B"))
            read = [base.weight, getattr(base, "bias", None), *factors]
            for parameter in read:
                if parameter is not None:
                    deepspeed.zero.register_external_parameter(layer, parameter)


def _factor(module: Any, kind: str, name: str) -> nn.Parameter:
    table = getattr(module, f"lora_embedding_{kind}")
    found: nn.Parameter = table[name] if name in table else getattr(module, f"lora_{kind}")[name].weight
    return found
