"""The whole road of Hugging Face's post on Megatron-LM, as `tests.support.megatron_road` has it, on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.megatron_road import prepare, road
from tests.support.processes import hpclm

pytestmark = pytest.mark.slow


def test_the_post_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    road(tmp_path, "resources.devices_per_node=4", "parallel.tensor=2", "parallel.pipeline=2")
    # at any split
    Path("prompts.txt").write_text("import sys\n\nclass A:\n")
    words = (
        "generate",
        "codeparrot-small",
        "--file",
        "prompts.txt",
        "--device",
        "cpu",
        "--max-new-tokens",
        "24",
        "--json",
    )
    whole = json.loads(hpclm(*words))
    assert json.loads(hpclm(*words, "--tensor", "2")) == whole
    assert len(whole["answers"]) == 2
