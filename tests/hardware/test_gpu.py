"""On a machine with a GPU: what NVML says is what torch finds."""

from __future__ import annotations

import pytest

from hpclm.nodes import nvml


@pytest.mark.gpu
def test_nvml_and_torch_see_the_same_devices() -> None:
    import torch

    probe = nvml.probe()
    if not torch.cuda.is_available():
        pytest.skip("a rehearsal: there is no driver to ask")
    assert probe.state == "ok"
    visible = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    assert {one.name for one in visible} <= {gpu.name for gpu in probe.gpus}
    assert {(one.major, one.minor) for one in visible} <= {gpu.capability for gpu in probe.gpus}
