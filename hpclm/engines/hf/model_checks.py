"""What a model's folder allows: methods, lengths, chat templates. Asked before a job is queued."""

from __future__ import annotations

import stat
from pathlib import Path

from hpclm.core.files import open_file
from hpclm.core.fine_tune_spec import HuggingFaceSpec, InstructionData, MethodSpec, ShardingSpec
from hpclm.core.nearest import nearest_name
from hpclm.data.instructions.template_syntax import marks_answers, opens_answers, template_fault
from hpclm.formats.huggingface.model_facts import EXPERTS, ModelFacts
from hpclm.planning.stage_context import StageContext

_SHOWN = 8
_MAX_TEMPLATE = 1 << 20
# Architectures for which PEFT (0.17 and later) chooses LoRA's targets itself: peft/utils/constants.py.
DEFAULT_TARGETS = frozenset(
    ("t5", "mt5", "bart", "gpt2", "bloom", "blip-2", "opt", "gptj", "gpt_neox", "gpt_neo", "bert", "roberta",
     "xlm-roberta", "electra", "deberta-v2", "deberta", "layoutlm", "llama", "llama4", "chatglm", "gpt_bigcode", "mpt",
     "RefinedWebModel", "RefinedWeb", "falcon", "btlm", "codegen", "mistral", "mixtral", "stablelm", "phi", "gemma",
     "gemma2", "gemma3_text", "gemma4", "qwen2", "qwen3", "nemotron_h", "rwkv", "rwkv7")
)  # fmt: skip


def check(
    stage: StageContext,
    facts: ModelFacts,
    method: MethodSpec,
    sharding: ShardingSpec,
    data: InstructionData | None,
    huggingface: HuggingFaceSpec,
) -> None:
    """Adds a finding for everything that is wrong. What is wrong with the folder itself is told by the stage that names
    it, not again by those that build on that stage."""
    names_it = stage.recipe.base is None
    if facts.adapter is not None and stage.task.trains:
        what = f"{facts.adapter} is an adapter; join it with its model first: hpclm model merge {facts.adapter} OUT"
        stage.error(("model", "checkpoint"), what, "base is a whole model", facts.adapter)
    if facts.remote_code and not huggingface.remote_code and (names_it or "huggingface" in stage.loaded.own):
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
        _positions(stage, facts, method, data)
        if names_it:
            _tokenizer(stage, facts)
        _template(stage, facts, data)


def _targets(stage: StageContext, facts: ModelFacts, method: MethodSpec) -> None:
    if not method.lora.targets and facts.model_type not in DEFAULT_TARGETS:
        what = f"PEFT has no default for {facts.model_type}; give endings of module names, or [all-linear]"
        stage.error(("fine_tune", "lora", "targets"), what, "lora's default targets", (), ("all-linear",))
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
    _of_experts(stage, facts, method)
    if "all-linear" in method.lora.targets and facts.has_experts:
        what = "all-linear: routed experts and their router are no linear layers in transformers; they stay as they are"
        stage.warning(("fine_tune", "lora", "targets"), what, "adapters beside experts", "all-linear")
    if "all-linear" in method.lora.targets and len(method.lora.targets) > 1:
        what = "all-linear stands alone; leave the others out"
        stage.error(("fine_tune", "lora", "targets"), what, "all-linear stands alone")


def _of_experts(stage: StageContext, facts: ModelFacts, method: MethodSpec) -> None:
    """PEFT's rules for experts, whose weights transformers joins (peft/tuners/tuners_utils.py)."""
    endings = {name.rpartition(".")[2] for name in facts.matrices if EXPERTS in name}
    asked = {target.rpartition(".")[2] for target in method.lora.targets} & endings
    where, rule = ("fine_tune", "lora", "targets"), "adapters of experts"
    for one, other in (("w1", "w3"), ("gate_proj", "up_proj")):
        for target, missing in ((one, other), (other, one)):
            if target in asked and missing in endings - asked:
                what = f"{target} of experts is one tensor with {missing}; add {missing}"
                stage.error(where, what, rule, target, (missing,))
    if asked and method.lora.dropout:
        what = f"is {method.lora.dropout:g}, and PEFT drops nothing of experts ({', '.join(sorted(asked))}); choose 0"
        stage.error(("fine_tune", "lora", "dropout"), what, rule, method.lora.dropout, (0,))


def _positions(stage: StageContext, facts: ModelFacts, method: MethodSpec, data: InstructionData) -> None:
    most, length = facts.max_positions, data.max_seq_length
    if most is None:
        return
    if length > most:
        what = f"{length} exceeds the model's {most} positions; choose {most} or less"
        stage.error(("instructions", "max_seq_length"), what, "sequence length <= positions", length, (most,))
        return
    more = 0
    keys: tuple[str, ...] = ("fine_tune", "virtual_tokens", "count")
    if stage.task.trains and method.method in ("p-tuning", "prompt-tuning"):
        more = method.virtual_tokens.count
    elif stage.task.answers and stage.recipe.generation is not None:
        more, keys = stage.recipe.generation.max_new_tokens, ("generation", "max_new_tokens")
    if length + more > most:
        what = f"{more} and instructions.max_seq_length {length} exceed the model's {most} positions together; choose "
        mend = f"max_seq_length {most - more} or less" if more < most else f"less than {most}"
        stage.error(keys, what + mend, "sequence length <= positions", more)


def _tokenizer(stage: StageContext, facts: ModelFacts) -> None:
    keys = ("model", "checkpoint")
    if not facts.has_fast_tokenizer:
        what = (
            f"{facts.folder} has no tokenizer.json; make one where transformers is: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
        stage.error(keys, what, "tokenizer.json exists")
    elif not facts.has_end_token:
        what = f"{facts.folder}: its tokenizer has no end token; write eos_token into its tokenizer_config.json"
        stage.error(keys, what, "end token exists")
    largest, size = facts.largest_token, facts.vocab_size
    if largest is not None and size is not None and largest >= size:
        what = f"{facts.folder}: its tokenizer has a token {largest}, and vocab_size of its config.json is {size}; "
        stage.error(keys, f"{what}give a model whose tokenizer belongs to it", "tokens < vocab_size", largest)
    if facts.end_is_padding:
        what = "the tokenizer pads with its end token; here nothing is padded, and the end token is learned"
        stage.info(keys, what, "pad = eos")


def _template(stage: StageContext, facts: ModelFacts, data: InstructionData) -> None:
    if data.template == "chat" and data.chat_template is None and not facts.has_chat_template:
        what = (
            f"chat: {facts.folder} has no chat template (a base model has none); choose stanford, or give "
            "instructions.chat_template"
        )
        stage.error(
            ("instructions", "template"), what, "chat template exists", "chat", ("stanford", "axolotl", "plain")
        )
    if data.chat_template is not None and stage.files:
        try:
            _answers_marked(stage, _template_text(Path(data.chat_template)), data.chat_template)
        except ValueError as error:
            what = f"{data.chat_template}: {error}; give a Jinja file"
            stage.error(("instructions", "chat_template"), what, "chat template exists", data.chat_template)


def _answers_marked(stage: StageContext, template: str, name: str) -> None:
    if stage.task.trains and not (opens_answers(template) or marks_answers(template)):
        what = (
            f"{name}: has neither add_generation_prompt nor {{% generation %}}, so the header of each answer may "
            "be learned, too; add one of them (hpclm data check shows what is learned)"
        )
        stage.warning(("instructions", "chat_template"), what, "answers' beginnings are known", name)


def _template_text(path: Path) -> str:
    """A file of Jinja. Raises ValueError with what is wrong with it."""
    try:
        with open_file(path) as stream:
            text = stream.read(_MAX_TEMPLATE + 1)
        if len(text) > _MAX_TEMPLATE:
            raise ValueError("is too large for a template")
        written = text.decode()
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text at byte {error.start}") from None
    fault = template_fault(written) if written.strip() else "is empty"
    if fault is not None:
        raise ValueError(fault)
    return written


def mended(message: str, folder: Path) -> str:
    """The message for a folder that is no model, and what to do about it."""
    try:
        mode = folder.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        return f"{folder}: cannot be read ({error.strerror}); give a folder in transformers' format"
    if mode is None:
        looks_like_name = len(folder.parts) >= 2 and not folder.parent.exists()
        hint = (
            f"; to fetch it: hpclm model fetch {'/'.join(folder.parts[-2:])} --out {folder}" if looks_like_name else ""
        )
        return f"{folder}: does not exist; give a folder in transformers' format{hint}"
    if not stat.S_ISDIR(mode):
        return f"{folder}: is not a folder; give a folder in transformers' format"
    return message if "; " in message else f"{message}; copy the model again, or give another folder"
