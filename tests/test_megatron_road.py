"""The whole road of Hugging Face's post on Megatron-LM, as `tests.support.megatron_road` has it, on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.megatron_road import PROMPT, prepare, road
from tests.support.processes import hpclm

pytestmark = pytest.mark.slow


def test_the_post_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    said = road(tmp_path, "resources.devices_per_node=4", "parallel.tensor=2", "parallel.pipeline=2")
    # from the converted model, at another split, of a file's prompts
    Path("prompts.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n")
    words = ("codeparrot-small", "--file", "prompts.jsonl", "--tensor", "2", "--device", "cpu", "--json")
    (answer,) = json.loads(hpclm("generate", *words, "--max-new-tokens", "24"))["answers"]
    assert answer["text"] == said
