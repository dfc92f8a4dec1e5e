"""Hugging Face's post on Megatron-LM with its own model of 110 million parameters, on one GPU."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.gpu.conftest import REHEARSES
from tests.support.megatron_road import PROMPT, SHORTER, prepare, road
from tests.support.processes import hpclm

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_the_post_at_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path, device: str) -> None:
    if REHEARSES:
        pytest.skip("110 million parameters take hours on a CPU; tests/test_megatron_road.py has a small model")
    prepare(tmp_path, monkeypatch, shared_data / "gpt2-bpe")
    said = road(tmp_path, "resources.devices_per_node=1", settings=SHORTER, guess=math.log(50257))
    lines = next(tmp_path.glob("runs/*/stages/pretrain/metrics.jsonl")).read_text().splitlines()
    print(*[line for line in map(json.loads, lines) if line["step"] % 20 == 0], sep="\n")
    words = ("codeparrot-small", PROMPT, "--max-new-tokens", "24", "--device", device, "--json")
    (answer,) = json.loads(hpclm("generate", *words))["answers"]
    print(repr(said), repr(answer["text"]))  # in bf16 there, so not always the same
    assert answer["text"]
