"""A model stops where its rows ended: by the chat template's own token, if that is not the tokenizer's end token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.fine_tune_spec import InstructionData
from hpclm.data.ranks.instruction_tokens import InstructionEncoder
from hpclm.engines.hf.ranks.evaluation import Answers, Prompts
from hpclm.engines.hf.ranks.hf_loading import load_tokenizer
from hpclm.engines.hf.ranks.tuned_models import load
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import run
from tests.support.hf_models import CHATML, save_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen's base models: texts end with <|endoftext|>, turns of the chat template with <|im_end|>."""
    folder = save_model(tmp_path_factory.mktemp("base") / "llama")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|endoftext|>"}))
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 0}))
    return folder


@pytest.mark.parametrize(
    ("template", "chat", "ends"),
    [
        ("chat", CHATML, [0, 2]),
        ("stanford", None, [0]),
        ("chat", "{% for m in messages %}{{ m.content }}\n{% endfor %}", [0]),
        ("chat", "{{ raise_exception('no') }}", [0]),
    ],
    ids=["chatml", "text", "none", "raises"],
)
def test_what_ends_an_answer(base: Path, template: Any, chat: str | None, ends: list[int]) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = chat
    assert InstructionEncoder(tokenizer, InstructionData(template=template)).ends() == ends


def test_an_evaluation_and_an_exported_model_stop_there(base: Path, shop: Workshop, tmp_path: Path) -> None:
    import torch
    from transformers import GenerationConfig

    from hpclm.core.spec import GenerationSpec
    from hpclm.engines.hf.ranks.exporting import export
    from hpclm.engines.hf.ranks.hf_groups import DataGroup
    from tests.support.hf_harness import hf_spec

    paths = run(hf_spec(tmp_path / "stage", base, shop.rows, steps=2, validate=2, data={"template": "chat"}))
    export(paths.checkpoints, tmp_path / "out", "fp32")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [0, 2]
    cpu = torch.device("cpu")
    spec = hf_spec(tmp_path / "ask", base, shop.rows, data={"template": "chat"})
    tuned = load(str(paths.checkpoints), spec.huggingface, "fp32", cpu)
    prompts = Prompts(InstructionEncoder(tuned.tokenizer, spec.data), [], 64)
    answers = Answers(tuned, prompts, GenerationSpec(max_new_tokens=4), DataGroup(0, 1, 0, cpu))
    assert set(answers.ends) == {0, 2}
