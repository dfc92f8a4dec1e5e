"""Every tensor of a stage of engine hf on a GPU is on that GPU, here one that refuses tensors of the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.fine_tune_spec import LoraSpec, VirtualTokensSpec
from hpclm.core.records import to_dict
from tests.engine_hf.conftest import Workshop
from tests.support.processes import python

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("hf_refusing_device.py")
EVERYWHERE = {"lora": LoraSpec(4, targets=["all-linear"], dropout=0.1, dora=True)}


def on_the_device(shop: Workshop, kind: str, *, stray: bool = False, **how: Any) -> str:
    asked = json.dumps({"spec": to_dict(shop.spec(kind, device="gpu", **how)), "stray": stray})
    done = python("-W", "ignore", PROGRAM, input=asked)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("llama", {"optimizer": "adafactor"}),
        ("gpt2", {"optimizer": "lamb"}),
        ("gemma2", {}),
        ("qwen3", {"method": "lora", "of_method": EVERYWHERE}),
        ("llama", {"method": "p-tuning", "of_method": {"virtual_tokens": VirtualTokensSpec(encoder="lstm")}}),
        ("llama", {"method": "prompt-tuning", "of_method": {"virtual_tokens": VirtualTokensSpec(init_text="sort")}}),
    ],
)
def test_everything_is_on_the_ranks_device(shop: Workshop, kind: str, how: dict[str, Any]) -> None:
    assert on_the_device(shop, kind, **how) == "together"


def test_a_batch_that_stays_on_the_host_is_found(shop: Workshop) -> None:
    assert "Expected all tensors to be on the same device" in on_the_device(shop, "llama", stray=True)
