"""From axolotl's keys to a recipe."""

from __future__ import annotations

from hpclm.recipe.importers.axolotl import keys, refusals
from hpclm.recipe.importers.axolotl.row_types import source
from hpclm.recipe.importers.fine_tuning.named_files import json_object, located
from hpclm.recipe.importers.fine_tuning.row_keys import RowKeys
from hpclm.recipe.importers.fine_tuning.row_sources import RowSource
from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.tree import Node

_PLUGINS = ("cut_cross_entropy", "liger", "kernels", "swanlab", "lm_eval", "expert_parallel")
_TOO_LONG = {"drop": "leave-out", "truncate": "cut", "raise": "refuse"}
_DEFAULT_LENGTH = 512
# base.py: min(int(0.03 · steps), 100)
_WARMUP = 0.03
_TOKENIZER = "tokenizer_config.json"


class Axolotl(RowKeys):
    """One file."""

    tool = "axolotl"
    taken, no_effect, refused, secrets = keys.TAKEN, keys.NO_EFFECT, refusals.REFUSED, keys.SECRETS
    own = keys.OWN
    default_schedule, default_batch, default_epochs = "cosine", 1, 1

    def translate(self) -> None:
        model = self.text("base_model")
        if model is None:
            self.fault(self.root, "base_model is missing; add it")
        else:
            self.put("model.checkpoint", self.at("base_model"), located(self.folder, model))
        if self.at("learning_rate") is None:
            self.fault(self.root, "learning_rate is missing; add it")
        self.method()
        self.arguments()
        self.sharding()
        self.copies()
        self.rows()
        self.lengths()
        self.plugins()
        self.special_tokens()
        patience = self.whole("early_stopping_patience")
        if patience is not None:
            node = self.at("early_stopping_patience")
            self.put("trainer.early_stopping", node, {"patience": patience, "min_delta": 0})

    def method(self) -> None:
        method, node = self.text("adapter"), self.at("adapter")
        if method is None:
            self.put("fine_tune.method", node, "full")
            if self.on("load_in_4bit"):
                what = "a quantised model is not trained itself; give adapter: qlora, or remove it"
                self.fault(self.at("load_in_4bit"), what)
            for key in self.entries:
                if (key.startswith("lora_") and key in self.taken) or key in ("peft_use_rslora", "peft_use_dora"):
                    self.fates[key] = KeyFate.NO_EFFECT, "adapter is not lora"
            return
        if method not in ("lora", "qlora"):
            what = f"adapter {method[:20]} is not supported; choose lora or qlora, or leave it out to train all weights"
            self.fault(node, what)
            return
        self.put("fine_tune.method", node, "lora")
        self.quantization(method)
        for key, name in (("lora_r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
            value = self.number(key)
            if value is None and name != "dropout":
                self.fault(node, f"{key} is missing; add it")
            elif value:
                self.put(f"fine_tune.lora.{name}", self.at(key), value if name == "rank" else float(value))
        self.targets()
        others = self.texts("lora_modules_to_save")
        if others:
            self.put("fine_tune.lora.modules_to_save", self.at("lora_modules_to_save"), others)
        for key in ("rslora", "dora"):
            if self.on(f"peft_use_{key}"):
                self.put(f"fine_tune.lora.{key}", self.at(f"peft_use_{key}"), True)

    def quantization(self, method: str) -> None:
        """axolotl's model_load: nf4 with double quantisation, unless bnb_config_kwargs say otherwise."""
        if self.on("load_in_4bit"):
            self.put("huggingface.quantization", self.at("load_in_4bit"), "nf4")
            if self.at("bnb_config_kwargs") is not None:
                self.fault(self.at("bnb_config_kwargs"), "is not read: nf4 with double quantisation is; remove it")
        elif method == "qlora":
            self.fault(self.at("adapter"), "adapter qlora needs load_in_4bit: true; add it, or choose lora")

    def targets(self) -> None:
        node = self.at("lora_target_modules")
        if self.on("lora_target_linear"):
            self.put("fine_tune.lora.targets", self.at("lora_target_linear"), ["all-linear"])
            if node is not None:
                self.fate("lora_target_modules", KeyFate.NO_EFFECT, "lora_target_linear means every linear layer")
        elif node is not None and isinstance(node.value, str) and node.value != "all-linear":
            self.fault(node, "lora_target_modules is a pattern; write the endings of the modules' names in a list")
        elif node is not None and self.texts("lora_target_modules"):
            self.put("fine_tune.lora.targets", node, self.texts("lora_target_modules"))

    # as TrainingArguments, but for these

    def batch(self) -> None:
        super().batch()
        total, micro = self.whole("batch_size"), self.whole("per_device_train_batch_size") or 1
        if total is None:
            return
        if self.at("gradient_accumulation_steps") is not None:
            self.fate("batch_size", KeyFate.NO_EFFECT, "gradient_accumulation_steps is given")
        elif micro < 1 or total % micro:
            self.fault(self.at("batch_size"), f"micro_batch_size {micro} does not divide batch_size {total}")
        else:
            self.put("batch.global", self.at("batch_size"), total)
            batch = self.out["batch"].value
            assert isinstance(batch, dict)
            self.per_device = batch["global"]

    def schedule(self) -> None:
        super().schedule()
        ratio, lr = self.number("cosine_min_lr_ratio"), self.number("learning_rate")
        if ratio and lr:
            self.put("optim.min_lr", self.at("cosine_min_lr_ratio"), ratio * lr)

    def warmup(self) -> None:
        super().warmup()
        if self.at("warmup_steps") is None and self.at("warmup_ratio") is None:
            self.put("optim.schedule.warmup_ratio", None, _WARMUP)

    def precision(self) -> None:
        node = self.at("bf16") or self.at("bfloat16")
        word = "auto" if node is None and not (self.on("fp16") or self.on("float16")) else node and node.value
        if word in ("auto", "full") or (node is not None and self.on("bf16" if self.at("bf16") else "bfloat16")):
            self.put("trainer.precision", node, "bf16")
            self.fate("tf32", KeyFate.NO_EFFECT, "products are of bf16")
            if word == "full":
                what = "trainer.precision: bf16, of which the optimizer keeps fp32 weights"
                self.fate("bf16", KeyFate.DIFFERS, what)
        elif self.on("fp16") or self.on("float16"):
            self.put("trainer.precision", self.at("fp16") or self.at("float16"), "fp16")
        else:
            asked = self.at("tf32")
            if asked is None or asked.value == "auto" or self.on("tf32"):
                self.put("trainer.precision", asked, "tf32")

    def validation(self) -> None:
        times = self.number("evals_per_epoch")
        if times and self.number("eval_steps") is None:
            self.put("trainer.val_check_interval", self.at("evals_per_epoch"), 1.0 / max(1, times))
        elif self.at("eval_steps") is not None and self.text("eval_strategy") in (None, "steps"):
            self.every(self.at("eval_steps"))
        elif self.at("eval_strategy") is not None:
            super().validation()

    def saving(self) -> None:
        super().saving()
        if self.at("save_steps") is None:
            checkpoint = self.out.get("checkpoint")
            if checkpoint is not None and isinstance(checkpoint.value, dict):
                checkpoint.value.pop("save_interval_steps", None)
                if not checkpoint.value:
                    del self.out["checkpoint"]
            what = "checkpoints are saved at each validation and at the end"
            self.fate("saves_per_epoch", KeyFate.NO_EFFECT, what)

    def tracking(self) -> None:
        if self.on("use_tensorboard"):
            self.put("tracking.tensorboard", self.at("use_tensorboard"), True)
        project, mode = self.text("wandb_project"), self.text("wandb_mode")
        if (project is not None or self.on("use_wandb")) and mode != "disabled":
            node = self.at("wandb_project") or self.at("use_wandb")
            named = {
                "project": project,
                "entity": self.text("wandb_entity"),
                "name": self.text("wandb_name"),
                "mode": mode,
            }
            self.put("tracking.wandb", node, {key: value for key, value in named.items() if value is not None} or True)
        address, experiment = self.text("mlflow_tracking_uri"), self.text("mlflow_experiment_name")
        if self.on("use_mlflow") or experiment is not None:
            node = self.at("use_mlflow") or self.at("mlflow_experiment_name")
            named = {"uri": address, "experiment": experiment}
            self.put("tracking.mlflow", node, {key: value for key, value in named.items() if value is not None} or True)

    def _means_fsdp(self, options: dict[str, Node]) -> bool:
        return bool(options)

    def copies(self) -> None:
        """dp_shard_size × dp_replicate_size devices: the first share a copy."""
        shards, copies = self.whole("dp_shard_size"), self.whole("dp_replicate_size")
        if shards is not None and shards > 1:
            self.put("sharding.strategy", self.at("dp_shard_size"), "fsdp")
            if copies is not None and copies > 1:
                self.put("sharding.group_size", self.at("dp_replicate_size"), shards)

    # rows

    def rows(self) -> None:
        found: list[RowSource] = []
        for key, ours in (("datasets", "instructions.train"), ("test_datasets", "instructions.validation")):
            node = self.at(key)
            if node is None or node.value == []:
                if key == "datasets":
                    self.lacks(ours, node, "datasets is missing; give --set 'hpclm.instructions.train=[FILE]'")
                continue
            sources = self._sources(node)
            found += sources
            self.files(ours, node, sources)
        self.split("val_set_size")
        if self.form(self.at("datasets"), found) and found:
            self.template(found[0])

    def _sources(self, node: Node) -> list[RowSource]:
        if not isinstance(node.value, list):
            self.fault(node, "datasets must be a list; write '- path: …'")
            return []
        found = []
        for number, entry in enumerate(node.value):
            try:
                found.append(source(number, entry, self.folder, self.text("chat_template")))
            except (ValueError, OSError) as error:
                self.fault(entry, str(error))
        return found

    def template(self, source: RowSource) -> None:
        node = self.at("datasets")
        ours, _, chat = source.template.partition(":")
        self.put("instructions.template", node, ours)
        file = source.chat_template or self._jinja(ours)
        if file is not None:
            self.put("instructions.chat_template", node, file)
        elif ours == "chat" and not chat.startswith("tokenizer_default"):
            what = f"instructions.template: chat, the model's own chat template, which should be axolotl's {chat[:40]}"
            self.fate("chat_template", KeyFate.DIFFERS, what)
        if ours != "chat":
            self.fate("chat_template", KeyFate.NO_EFFECT, "the data sets' type says the prompt")
        system = self.text("default_system_message")
        if system is not None:
            self.put("instructions.system", self.at("default_system_message"), system)

    def _jinja(self, ours: str) -> str | None:
        text, node = self.text("chat_template_jinja"), self.at("chat_template_jinja")
        if text is None or ours != "chat":
            return None
        path = located(self.folder, text) if "\n" not in text else ""
        if not path.endswith((".jinja", ".jinja2", ".j2", ".txt")):
            self.fault(node, "chat_template_jinja must be a file's name here; write the template into a .jinja file")
            return None
        return path

    def lengths(self) -> None:
        length = self.whole("sequence_len")
        self.put("instructions.max_seq_length", self.at("sequence_len"), _DEFAULT_LENGTH if length is None else length)
        way = (self.text("excess_length_strategy") or "drop").lower()
        if way in _TOO_LONG:
            self.put("instructions.too_long", self.at("excess_length_strategy"), _TOO_LONG[way])
        else:
            self.fault(self.at("excess_length_strategy"), f"{way[:40]} is not known; choose drop, truncate or raise")
        if self.on("sample_packing"):
            self.put("instructions.packing", self.at("sample_packing"), True)
        if self.on("train_on_inputs"):
            self.put("instructions.learn", self.at("train_on_inputs"), "everything")

    def plugins(self) -> None:
        node = self.at("plugins")
        for name in self.texts("plugins"):
            if not any(f".{known}." in f"{name}." for known in _PLUGINS):
                self.fault(node, f"plugin {name[:60]} changes what is trained, or is not known; remove it")

    def special_tokens(self) -> None:
        """Those that differ from the tokenizer's would change what is learned. Rows have no padding."""
        node, model = self.at("special_tokens"), self.text("base_model")
        if node is None or not isinstance(node.value, dict) or model is None:
            return
        try:
            own = json_object(self.folder / located(self.folder, model) / _TOKENIZER)
        except ValueError:
            own = None
        for key, token in node.value.items():
            if key == "pad_token" or token.value is None:
                continue
            mine = own.get(key) if own is not None else None
            mine = mine.get("content") if isinstance(mine, dict) else mine
            if own is None:
                what = "the tokenizer's own are used, which should be these"
                self.fate("special_tokens", KeyFate.DIFFERS, what)
            elif mine != token.value:
                what = (
                    f"special_tokens.{key[:40]} is not the tokenizer's; change {_TOKENIZER} of the model, or remove it"
                )
                self.fault(token, what)
