"""Every tensor of a stage of engine hf on a GPU is on that GPU, here one that refuses tensors of the host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.fine_tune_spec import LoraSpec, VirtualTokensSpec
from hpclm.core.records import to_dict
from tests.engine_hf.conftest import Workshop
from tests.support.processes import environment
from tests.support.rank_server import ForkedRank
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

EVERYWHERE = {"lora": LoraSpec(4, targets=["all-linear"], dropout=0.1, dora=True)}


def on_the_device(shop: Workshop, folder: Path, kind: str, *, stray: bool = False, **how: Any) -> str:
    asked, said = folder / "asked.json", folder / "said.log"
    asked.write_text(json.dumps({"spec": to_dict(shop.spec(kind, device="gpu", **how)), "stray": stray}))
    env = environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    ran = ForkedRank([str(asked)], env, said, kind="hf", function="tests.engine_hf.hf_refusing_device:run")
    wait_until("the process ends", lambda: ran.poll() is not None, limit_s=600)
    text = said.read_text()
    return text.strip().splitlines()[-1] if ran.poll() == 0 else text


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
def test_everything_is_on_the_ranks_device(shop: Workshop, tmp_path: Path, kind: str, how: dict[str, Any]) -> None:
    assert on_the_device(shop, tmp_path, kind, **how) == "together"


def test_a_batch_that_stays_on_the_host_is_found(shop: Workshop, tmp_path: Path) -> None:
    assert "Expected all tensors to be on the same device" in on_the_device(shop, tmp_path, "llama", stray=True)
