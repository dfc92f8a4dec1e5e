"""`hpclm generate` with what engine hf has tuned: answers to instructions on this machine, in one process."""

from __future__ import annotations

import os
from typing import Any, cast, get_args

import torch

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import DataError
from hpclm.core.files import read_object
from hpclm.core.fine_tune_spec import HuggingFaceSpec, InstructionData, PromptTemplate
from hpclm.core.spec import GenerationSpec
from hpclm.data.instructions.instruction_records import Record, RecordError, record
from hpclm.data.prediction_rows import TOKENS
from hpclm.data.ranks.instruction_tokens import InstructionEncoder
from hpclm.engines.hf.ranks.evaluation import Answers, Prompts
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.tuned_models import load

_LONGEST = 10**7


def answer(model: str, texts: list[str], spec: GenerationSpec, device: str) -> list[dict[str, Any]]:
    """An answer to each text, as an instruction in the template that the model was tuned with.

    Raises CheckpointError and DataError.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    on_gpu = device == "gpu" or (device == "auto" and torch.cuda.is_available())
    place = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    tuned = load(model, HuggingFaceSpec(attention="sdpa"), "bf16" if on_gpu else "fp32", place)
    card = read_object(CheckpointFolder(tuned.folder).fine_tuned) or {}
    template, system = card.get("template"), card.get("system")
    if template not in get_args(PromptTemplate):
        template = "chat" if tuned.tokenizer.chat_template else "plain"
    data = InstructionData(
        template=cast(PromptTemplate, template),
        format="prompt-completion",
        system=system if isinstance(system, str) else None,
    )
    rows = [_row(text, number, data) for number, text in enumerate(texts, start=1)]
    prompts = Prompts(InstructionEncoder(tuned.tokenizer, data), rows, _LONGEST)
    answers = Answers(tuned, prompts, spec, DataGroup(0, 1, 0, place))
    made = {row["index"]: row for some in answers(list(range(len(rows)))) for row in some}
    return [
        {"prompt": text, "text": made[number]["prediction"], "tokens": made[number][TOKENS]}
        for number, text in enumerate(texts)
    ]


def _row(text: str, number: int, data: InstructionData) -> Record:
    try:
        return record({"prompt": text}, f"prompt {number}", data, learns=False)
    except RecordError as error:
        raise DataError(f"prompt {number}: {error}") from None
