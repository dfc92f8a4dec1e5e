"""Rotary position embeddings in four operations on halves, and as many backward.

megatron-core's own takes eleven, each over memory (cosines of every layer, a negated and a joined half, two products, a
sum, a copy), which was a sixth of a pre-training step of 1.3 B parameters on an H200; its fused one needs Transformer
Engine. The backward pass is the rotation by the opposite angle, so that nothing but cosines and sines is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils
from torch import Tensor

_own = rope_utils._apply_rotary_pos_emb_bshd


def install() -> None:
    """Let megatron-core's attention use it."""
    rope_utils._apply_rotary_pos_emb_bshd = rotate


def rotate(
    states: Tensor,
    freqs: Tensor,
    rotary_interleaved: bool = False,
    multi_latent_attention: bool = False,
    mscale: float = 1.0,
) -> Tensor:
    """States [s, b, n, d] with the first r of their last axis rotated by the angles `freqs` [s, 1, 1, r], of which both
    halves are the same; rope_utils._apply_rotary_pos_emb_bshd with its arguments."""
    if rotary_interleaved or multi_latent_attention:
        other: Tensor = _own(states, freqs, rotary_interleaved, multi_latent_attention, mscale)
        return other
    cosines, sines = _tables(freqs, states.dtype, mscale)
    rotated: Tensor = _Rotation.apply(states, cosines, sines)  # type: ignore[no-untyped-call]
    return rotated


_latest: tuple[Tensor, tuple[torch.dtype, float], tuple[Tensor, Tensor]] | None = None


def _tables(freqs: Tensor, dtype: torch.dtype, mscale: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [s, 1, 1, r / 2]; queries and keys of all layers ask for the same ones."""
    global _latest
    if _latest is None or _latest[0] is not freqs or _latest[1] != (dtype, mscale):
        angles = freqs[..., : freqs.size(-1) // 2]
        _latest = freqs, (dtype, mscale), ((angles.cos() * mscale).to(dtype), (angles.sin() * mscale).to(dtype))
    return _latest[2]


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(states, cosines, sines, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotated(gradients[0], cosines, sines, -1.0), None, None


def _rotated(states: Tensor, cosines: Tensor, sines: Tensor, sign: float) -> Tensor:
    half = cosines.size(-1)
    made = torch.empty_like(states, memory_format=torch.contiguous_format)
    first, second = states[..., :half], states[..., half : 2 * half]
    torch.mul(first, cosines, out=made[..., :half]).addcmul_(second, sines, value=-sign)
    torch.mul(second, cosines, out=made[..., half : 2 * half]).addcmul_(first, sines, value=sign)
    if states.size(-1) > 2 * half:
        made[..., 2 * half :] = states[..., 2 * half :]
    return made
