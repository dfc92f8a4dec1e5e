"""What a model's folder allows: methods, lengths, chat templates. Asked before a job is queued."""

from __future__ import annotations

from pathlib import Path

from hpclm.core.fine_tune_spec import HuggingFaceSpec, InstructionData, MethodSpec, ShardingSpec
from hpclm.core.nearest import nearest_name
from hpclm.formats.huggingface.model_facts import ModelFacts
from hpclm.planning.stage_context import StageContext

_SHOWN = 8


def check(
    stage: StageContext,
    facts: ModelFacts,
    method: MethodSpec,
    sharding: ShardingSpec,
    data: InstructionData | None,
    huggingface: HuggingFaceSpec,
) -> None:
    """Adds a finding for everything that is wrong."""
    if facts.remote_code and not huggingface.remote_code:
        what = (
            f"{facts.folder} has Python files of its own, which may do anything that you can; read them, then set "
            "huggingface.remote_code: true"
        )
        stage.error(("huggingface", "remote_code"), what, "remote code is asked for", False, (True,))
    if facts.quantized is not None and stage.task.trains:
        what = (
            f"{facts.folder} is quantised ({facts.quantized}), and its weights cannot be trained or divided; give the "
        )
        stage.error(
            ("model", "checkpoint"), f"{what}model that it was made from", "model in full precision", facts.quantized
        )
    if stage.task.trains and method.method == "lora":
        _targets(stage, facts, method)
    if data is not None:
        _data(stage, facts, data)


def _targets(stage: StageContext, facts: ModelFacts, method: MethodSpec) -> None:
    endings = {name.rpartition(".")[2] for name in facts.matrices}
    for key in ("targets", "modules_to_save"):
        for number, target in enumerate(getattr(method.lora, key)):
            if target == "all-linear" and key == "targets":
                continue
            if any(name == target or name.endswith(f".{target}") for name in facts.matrices):
                continue
            near = nearest_name(target, endings)
            hint = f"did you mean {near}? " if near else ""
            known = sorted(endings)
            shown = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
            what = f"{target} is no module of {facts.folder}; {hint}there are {shown}"
            stage.error(("fine_tune", "lora", key, number), what, "lora's modules exist", target, known[:_SHOWN])
    if "all-linear" in method.lora.targets and len(method.lora.targets) > 1:
        what = "all-linear stands alone; leave the others out"
        stage.error(("fine_tune", "lora", "targets"), what, "all-linear stands alone")


def _data(stage: StageContext, facts: ModelFacts, data: InstructionData) -> None:
    if facts.max_positions is not None and data.max_seq_length > facts.max_positions:
        most = facts.max_positions
        what = f"{data.max_seq_length} exceeds the model's {most} positions; choose {most} or less"
        stage.error(
            ("instructions", "max_seq_length"), what, "sequence length <= positions", data.max_seq_length,
            (facts.max_positions,),
        )  # fmt: skip
    if not facts.has_fast_tokenizer:
        what = (
            f"{facts.folder} has no tokenizer.json; make one where transformers is: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
        stage.error(("model", "checkpoint"), what, "tokenizer.json exists")
    if data.template == "chat" and data.chat_template is None and not facts.has_chat_template:
        what = (
            f"chat: {facts.folder} has no chat template (a base model has none); choose stanford, or give "
            "instructions.chat_template"
        )
        stage.error(
            ("instructions", "template"), what, "chat template exists", "chat", ("stanford", "axolotl", "plain")
        )
    if data.chat_template is not None and stage.files and not Path(data.chat_template).is_file():
        what = f"{data.chat_template}: does not exist; give a Jinja file"
        stage.error(("instructions", "chat_template"), what, "chat template exists", data.chat_template)
    if facts.end_is_padding:
        what = "the tokenizer pads with its end token; here nothing is padded, and the end token is learned"
        stage.info(("model", "checkpoint"), what, "pad = eos")


def mended(message: str, folder: Path) -> str:
    """The message for a folder that is no model, and what to do about it."""
    if not folder.exists():
        looks_like_name = len(folder.parts) >= 2 and not folder.parent.exists()
        hint = (
            f"; to fetch it: hpclm model fetch {'/'.join(folder.parts[-2:])} --out {folder}" if looks_like_name else ""
        )
        return f"{folder}: does not exist; give a folder in transformers' format{hint}"
    return message
