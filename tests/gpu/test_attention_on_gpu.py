"""Attention over packed rows by flash kernels against torch's own on padded rows."""

from __future__ import annotations

import pytest

from tests.gpu.conftest import REHEARSES

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("shared", [0, 7])
@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 64), (8, 2, 128), (4, 4, 80)])
@pytest.mark.parametrize("counts", [[5, 1, 130, 64], [33, 0, 2], [700]])
def test_packed_rows_read_what_padded_rows_read(
    shared: int, heads: int, groups: int, width: int, counts: list[int]
) -> None:
    if REHEARSES:
        pytest.skip("a kernel of GPUs")
    import torch
    from torch.nn import functional

    from hpclm.data.ranks.packed_layout import Layout
    from hpclm.training.ranks import flash_attention as flash

    torch.manual_seed(1)
    length = shared + sum(counts) + 3
    layout = Layout(Layout.make(shared, counts, length).to("cuda"), length)
    sizes = [(length, heads, width), (length, groups, width), (length, groups, width)]
    states = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes]
    upstream = torch.randn(sizes[0], device="cuda", dtype=torch.bfloat16)

    def found(exact: bool) -> list[torch.Tensor]:
        inputs = [one.to(torch.float64 if exact else one.dtype).requires_grad_() for one in states]
        if exact:
            q, k, v = (layout.unpack(one.unsqueeze(1)) for one in inputs)
            k, v = (one.repeat_interleave(heads // groups, dim=1) for one in (k, v))
            made = layout.pack(functional.scaled_dot_product_attention(q, k, v, is_causal=True))[:, 0]
            made = made.view(sizes[0])
        else:
            assert flash.usable(inputs[0])
            made = flash.attend(inputs[0], inputs[1], inputs[2], layout.segments, None)
        return [made.detach(), *torch.autograd.grad(made, inputs, upstream.to(made.dtype))]

    for mine, exact in zip(found(False), found(True), strict=True):
        assert (mine.double() - exact).norm() <= 1e-2 * exact.norm()
