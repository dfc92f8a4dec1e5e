"""From LLaMA-Factory's keys to a recipe."""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning.named_files import located
from hpclm.recipe.importers.fine_tuning.row_keys import RowKeys
from hpclm.recipe.importers.fine_tuning.row_sources import RowSource
from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.importers.llama_factory import keys
from hpclm.recipe.importers.llama_factory.dataset_info import FILE, DatasetInfo
from hpclm.recipe.tree import Node

_STAGES = {
    "pt": "raw text is task pretrain's, by engine megatron",
    "rm": "there are no reward models",
    "ppo": "there is no PPO",
    "dpo": "there is no DPO",
    "kto": "there is no KTO",
}
_METHODS = {"oft": "there is no OFT; choose lora or full", "freeze": "all layers are trained, or adapters; choose full"}
# Templates that are LLaMA-Factory's own and no model's
_OWN_TEMPLATES = {
    "default": "Human: … Assistant: …",
    "fewshot": "the texts one after another",
}
# Those with thoughts, which it adds to answers that have none (data/template.py, ReasoningTemplate)
_REASONING = frozenset(
    (
        "deepseekr1",
        "hy3",
        "ernie_vl",
        "gemma4",
        "gemma4n",
        "glm4_moe",
        "glm4v",
        "glm4_5v",
        "glm4_7",
        "glmz1",
        "gpt_oss",
        "keye_vl",
        "kimi_vl",
        "mimo",
        "mimo_v2",
        "mimo_vl",
        "minimax2",
        "qwen3",
        "qwen3_omni",
        "qwen3_vl",
        "qwen3_5",
        "qwen3_6",
        "seed_oss",
        "youtu",
        "aeva",
    )
)
_DEFAULT_LENGTH = 2048


class LlamaFactory(RowKeys):
    """One file."""

    tool = "LLaMA-Factory"
    taken, no_effect, refused, secrets = keys.TAKEN, keys.NO_EFFECT, keys.REFUSED, keys.SECRETS

    def translate(self) -> None:
        stage = self.text("stage") or "sft"
        if stage != "sft":
            self.fault(self.at("stage"), f"stage {stage[:20]}: {_STAGES.get(stage, 'is not known')}; choose sft")
            return
        model = self.text("model_name_or_path")
        if model is None:
            self.lacks("model.checkpoint", None, "model_name_or_path is missing; add it")
        else:
            self.put("model.checkpoint", self.at("model_name_or_path"), located(self.folder, model))
        self.method()
        self.arguments()
        self.checkpointed = not self.on("disable_gradient_checkpointing")
        if self.at("gradient_checkpointing") is not None and self.checkpointed:
            self.fate("gradient_checkpointing", KeyFate.NO_EFFECT, "disable_gradient_checkpointing decides")
        self.sharding()
        self.rows()
        self.prompts()
        patience = self.whole("early_stopping_steps")
        if patience is not None:
            self.put("trainer.early_stopping", self.at("early_stopping_steps"), {"patience": patience, "min_delta": 0})

    def on_or_named(self, key: str, *, default: bool) -> bool:
        return self.checkpointed

    def method(self) -> None:
        method, node = self.text("finetuning_type") or "lora", self.at("finetuning_type")
        if method not in ("lora", "full"):
            self.fault(
                node, f"finetuning_type {method[:20]}: {_METHODS.get(method, 'is not known; choose lora or full')}"
            )
            return
        self.put("fine_tune.method", node, method)
        self.quantization(method)
        if method == "full":
            for key in self.entries:
                if key.startswith("lora_") or key in ("additional_target", "use_rslora", "use_dora"):
                    self.fates[key] = KeyFate.NO_EFFECT, "finetuning_type is full"
            return
        rank, alpha, dropout = self.whole("lora_rank"), self.number("lora_alpha"), self.number("lora_dropout")
        rank = 8 if rank is None else rank
        self.put("fine_tune.lora.rank", self.at("lora_rank"), rank)
        self.put("fine_tune.lora.alpha", self.at("lora_alpha") or self.at("lora_rank"), float(alpha or 2 * rank))
        if dropout:
            self.put("fine_tune.lora.dropout", self.at("lora_dropout"), float(dropout))
        targets = self.texts("lora_target") or ["all"]
        self.put("fine_tune.lora.targets", self.at("lora_target"), ["all-linear"] if targets == ["all"] else targets)
        others = self.texts("additional_target")
        if others:
            self.put("fine_tune.lora.modules_to_save", self.at("additional_target"), others)
        for key in ("rslora", "dora"):
            if self.on(f"use_{key}"):
                self.put(f"fine_tune.lora.{key}", self.at(f"use_{key}"), True)

    def quantization(self, method: str) -> None:
        """bitsandbytes' NormalFloat 4 with double quantisation, which is LLaMA-Factory's default of 4 bits."""
        bits, node = self.whole("quantization_bit"), self.at("quantization_bit")
        if bits is None:
            for key in ("quantization_method", "quantization_type", "double_quantization"):
                self.fate(key, KeyFate.NO_EFFECT, "an option of quantization_bit, which is not used")
            return
        way, kind = self.text("quantization_method") or "bnb", self.text("quantization_type") or "nf4"
        if bits != 4 or way.lower() not in ("bnb", "bitsandbytes") or kind != "nf4":
            what = f"quantization_bit {bits} by {way[:20]} ({kind[:20]}) is not supported; choose 4, bnb and nf4"
            self.fault(node, what)
            return
        if method != "lora":
            self.fault(node, "a quantised model is not trained itself; choose finetuning_type: lora, or remove it")
            return
        self.put("huggingface.quantization", node, "nf4")
        if not self.on("double_quantization", default=True):
            self.fate("double_quantization", KeyFate.DIFFERS, "scales of blocks are in 8 bits themselves")

    def precision(self) -> None:
        super().precision()
        if self.on("pure_bf16"):
            self.put("trainer.precision", self.at("pure_bf16"), "bf16")
            self.fate(
                "pure_bf16", KeyFate.DIFFERS, "trainer.precision: bf16, of which the optimizer keeps fp32 weights"
            )

    # data

    def rows(self) -> None:
        folder = self.text("dataset_dir") or "data"
        if folder == "ONLINE" or folder.startswith("REMOTE:"):
            self.lacks(
                "instructions.train", self.at("dataset_dir"), f"dataset_dir {folder[:80]} is on a hub; {_give()}"
            )
            return
        found: list[RowSource] = []
        wanted = {"train": self.texts("dataset"), "validation": self.texts("eval_dataset")}
        if not wanted["train"]:
            self.lacks("instructions.train", None, f"dataset is missing; {_give()}")
        for role, names in wanted.items():
            node = self.at("dataset" if role == "train" else "eval_dataset")
            sources = self._sources(role, node, located(self.folder, folder), names) if names else []
            found += sources
            self.files(f"instructions.{role}", node, sources)
        self.form(self.at("dataset"), found)
        self.split("val_size")

    def _sources(self, role: str, node: Node | None, folder: str, names: list[str]) -> list[RowSource]:
        most = self.whole("max_samples")
        try:
            info = DatasetInfo(self.folder, folder)
        except ValueError as error:
            what = f"{folder}/{FILE} {error}; give its folder by --set dataset_dir=FOLDER"
            self.lacks(f"instructions.{role}", node, what)
            return []
        found = []
        for name in names:
            try:
                found.append(info.source(name, most))
            except (ValueError, OSError) as error:
                self.fault(node, str(error))
        return found

    def prompts(self) -> None:
        self.template()
        length = self.whole("cutoff_len")
        self.put("instructions.max_seq_length", self.at("cutoff_len"), _DEFAULT_LENGTH if length is None else length)
        for key, learn in (("train_on_prompt", "everything"), ("mask_history", "last-answer")):
            if self.on(key):
                self.put("instructions.learn", self.at(key), learn)
        neat, packing = self.on("neat_packing"), self.on("packing")
        if neat or packing:
            self.put("instructions.packing", self.at("neat_packing" if neat else "packing"), True)
        if packing and not neat:
            what = "instructions.packing: true; LLaMA-Factory lets packed rows see each other, hpclm does not"
            self.fate("packing", KeyFate.DIFFERS, what)

    def template(self) -> None:
        name, node = self.text("template"), self.at("template")
        system = self.text("default_system")
        if system is not None:
            self.put("instructions.system", self.at("default_system"), system)
        if name in _OWN_TEMPLATES:
            what = f"template {name} is LLaMA-Factory's own ({_OWN_TEMPLATES[name]}); write it as Jinja into a file"
            instead = f"{what}, and give --set hpclm.instructions.chat_template=FILE"
            self.lacks("instructions.chat_template", node, instead)
            return
        ours = {"alpaca": "llama-factory", "empty": "plain"}.get(name or "", "chat")
        self.put("instructions.template", node, ours)
        if name == "alpaca":
            self.fate("template", KeyFate.TAKEN, "instructions.template: llama-factory")
            if system is not None:
                what = "instructions.system; template alpaca has no empty line after it, hpclm's has"
                self.fate("default_system", KeyFate.DIFFERS, what)
        elif name == "empty":
            self.fate(
                "template", KeyFate.DIFFERS, "instructions.template: plain, where an answer ends with the end token"
            )
        elif name in _REASONING:
            what = (
                f"instructions.template: chat, the model's own; LLaMA-Factory's {name} adds empty thoughts to answers"
            )
            self.fate("template", KeyFate.DIFFERS, what)
        elif name is not None:
            what = f"instructions.template: chat, the model's own chat template, which should be {name[:40]}"
            self.fate("template", KeyFate.DIFFERS, what)


def _give() -> str:
    return "give --set 'hpclm.instructions.train=[FILE]'"
