"""From TrainingArguments and SFTConfig to a recipe. The model and the rows are not in them."""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning.named_files import is_there, located
from hpclm.recipe.importers.fine_tuning.shard_settings import ShardSettings
from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.importers.trainer import keys
from hpclm.recipe.tree import Node

_PACKINGS = ("bfd", "ffd")
_LOSSES = ("nll", "chunked_nll")
_LEARN = "TRL learns all of messages, and of prompt and completion the completion; say which you want"
_LENGTH = 1024
_LORA = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}


class TrainerArguments(ShardSettings):
    """One file."""

    tool = "transformers' Trainer"
    taken, no_effect, refused, secrets = keys.TAKEN, keys.NO_EFFECT, keys.REFUSED, keys.SECRETS

    def translate(self) -> None:
        sft = any(self.at(key) is not None for key in keys.OF_SFT)
        if sft:
            self.default_lr = 2e-5
            self.checkpointed = True
        self.model()
        self.method()
        self.arguments()
        if sft and self.at("bf16") is None and not self.on("fp16"):
            self.put("trainer.precision", None, "bf16")
        self.sharding()
        self.rows()
        if sft:
            self.sft()

    def model(self) -> None:
        for key in ("model_name_or_path", "model"):
            model = self.text(key)
            if model is not None:
                self.put("model.checkpoint", self.at(key), located(self.folder, model))
                return
        what = "the file names no model; give --set hpclm.model.checkpoint=FOLDER"
        self.lacks("model.checkpoint", None, what)

    def method(self) -> None:
        self.quantization()
        if not self.on("use_peft"):
            for key in self.entries:
                if key.startswith("lora_") or key in ("use_rslora", "use_dora"):
                    self.fates[key] = KeyFate.NO_EFFECT, "use_peft is not true"
            return
        self.put("fine_tune.method", self.at("use_peft"), "lora")
        ours = {"lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
        for key, name in ours.items():
            value = self.number(key)
            value = _LORA[key] if value is None else value
            self.put(
                f"fine_tune.lora.{name}",
                self.at(key) or self.at("use_peft"),
                value if key == "lora_r" else float(value),
            )
        for key, name in (("lora_target_modules", "targets"), ("lora_modules_to_save", "modules_to_save")):
            found = self.texts(key)
            if found:
                self.put(f"fine_tune.lora.{name}", self.at(key), found)
        for key in ("rslora", "dora"):
            if self.on(f"use_{key}"):
                self.put(f"fine_tune.lora.{key}", self.at(f"use_{key}"), True)

    def quantization(self) -> None:
        """bitsandbytes' NormalFloat 4, always with double quantisation."""
        node = self.at("load_in_4bit")
        if not self.on("load_in_4bit"):
            for key in ("bnb_4bit_quant_type", "use_bnb_nested_quant"):
                self.fate(key, KeyFate.NO_EFFECT, "an option of load_in_4bit, which is off")
            return
        kind = self.text("bnb_4bit_quant_type") or "nf4"
        if not self.on("use_peft"):
            self.fault(node, "a quantised model is not trained itself; set use_peft, or remove it")
        elif kind != "nf4":
            self.fault(self.at("bnb_4bit_quant_type"), f"{kind[:20]} is not supported; choose nf4")
        else:
            self.put("huggingface.quantization", node, "nf4")
            if not self.on("use_bnb_nested_quant"):
                what = "scales of blocks are in 8 bits themselves (use_bnb_nested_quant)"
                self.fate("load_in_4bit", KeyFate.DIFFERS, what)

    def rows(self) -> None:
        name, node = self.text("dataset_name"), self.at("dataset_name")
        what = "the file names no rows; give --set 'hpclm.instructions.train=[FILE]'"
        if name is not None:
            path = located(self.folder, name)
            if is_there(self.folder / path) and (self.folder / path).is_file():
                self.put("instructions.train", node, [path])
                return
            fetch = f"fetch it (hpclm data fetch {name[:100]} --out FOLDER), then"
            what = f"{name[:100]} is no file here; {fetch} give --set 'hpclm.instructions.train=[FOLDER/FILE]'"
        self.lacks("instructions.train", node, what)

    def sft(self) -> None:
        key = "max_length" if self.at("max_length") is not None else "max_seq_length"
        length = self.whole(key)
        self.put("instructions.max_seq_length", self.at(key), _LENGTH if length is None else length)
        mode, loss = self.text("truncation_mode") or "keep_start", self.text("loss_type") or "nll"
        if mode != "keep_start":
            self.fault(self.at("truncation_mode"), f"{mode[:40]} is not supported; of long rows the start is kept")
        if loss not in _LOSSES:
            self.fault(self.at("loss_type"), f"{loss[:40]} is not supported; remove it")
        if self.on("packing"):
            self.put("instructions.packing", self.at("packing"), True)
            strategy = self.text("packing_strategy") or "bfd"
            if strategy in _PACKINGS:
                self.fate("packing_strategy", KeyFate.NO_EFFECT, "rows are packed first fit, each sees itself alone")
            else:
                what = f"{strategy[:40]} cuts rows, and lets them see each other; choose bfd"
                self.fault(self.at("packing_strategy"), what)
        template = self.text("chat_template_path")
        if template is not None:
            path = located(self.folder, template)
            if path.endswith((".jinja", ".jinja2", ".j2")):
                self.put("instructions.chat_template", self.at("chat_template_path"), path)
            else:
                self.fault(self.at("chat_template_path"), "must be a .jinja file; write the template into one")
        self.learned()

    def learned(self) -> None:
        """Which tokens have a loss. What TRL does without a word depends on the rows, which are not in the file."""
        answers = next((key for key in ("assistant_only_loss", "completion_only_loss") if self.on(key)), None)
        completion = self.at("completion_only_loss")
        if answers is not None:
            self.put("instructions.learn", self.at(answers), "answers")
        elif completion is not None:
            self.put("instructions.learn", completion, "everything")
        else:
            self.lacks(
                "instructions.learn", self._first(), f"{_LEARN}: --set hpclm.instructions.learn=everything, or =answers"
            )

    def _first(self) -> Node | None:
        return next((self.at(key) for key in keys.OF_SFT if self.at(key) is not None), None)
