"""Mixture of experts: what megatron-core's layers need here, and how evenly their routers share out the tokens."""

from __future__ import annotations

from megatron.core import parallel_state
from megatron.core.transformer.moe import moe_utils
from torch import Tensor, nn

from hpclm.formats.ranks.parameters import attributes, is_experts


def install() -> None:
    """Let megatron-core's router work without Transformer Engine, whose matrix product it asks for by name (0.16.1)."""
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def keep_apart(model: nn.Module) -> None:
    """Biases of experts that tensor ranks do not share are not summed over those: megatron-core (0.16.1) marks them as
    if they were, although each rank has other experts."""
    for parameter in model.parameters():
        if is_experts(parameter) and parallel_state.get_expert_tensor_parallel_world_size() == 1:
            attributes(parameter).sequence_parallel = False


def imbalance() -> Tensor | None:
    """fp32 [], the balancing loss of this rank's layers since the last call, before its coefficient, summed over layers
    and micro-batches; a rank's share of it where tensor or context ranks have parts of the tokens. None where nothing
    is balanced.

    Per layer and micro-batch it is 1 where all experts have as many tokens, and at most the number of experts.
    """
    tracked = moe_utils.get_moe_layer_wise_logging_tracker().get("load_balancing_loss")
    if tracked is None:
        return None
    total: Tensor = tracked["values"].sum()
    moe_utils.clear_aux_losses_tracker()
    return total
