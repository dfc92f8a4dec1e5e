"""From transformers' TrainingArguments to a recipe: batch, length, optimizer, rate, precision, saving, tracking.

Sources: huggingface/transformers 5.24, src/transformers/trainer.py, trainer_optimizer.py and optimization.py.
"""

from __future__ import annotations

from hpclm.recipe.importers.fine_tuning.translation_base import KeyTranslation
from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.tree import Node

_PAGED = "its state stays on the device"
_BLOCKS = "8 bits by bitsandbytes' blocks"
# Their optimizers, and what is different about ours.
OPTIMIZERS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw"), ("adamw", None)),
    **dict.fromkeys(("adamw_torch_xla", "adamw_torch_npu_fused", "flash_adamw"), ("adamw", None)),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), ("adamw", None)),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), ("adamw-8bit", None)),
    **dict.fromkeys(("adamw_torch_8bit", "ao_adamw_8bit"), ("adamw-8bit", f"{_BLOCKS}, not torchao's")),
    **dict.fromkeys(("lion_32bit", "lion", "paged_lion_32bit", "paged_lion"), ("lion", None)),
    "sgd": ("sgd", None),
    "adafactor": (
        "adafactor",
        "torch's Adafactor scales its steps by the size of the weights, Hugging Face's does not",
    ),
}
# Their schedules that hpclm has, all with a first rate of 0
SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "polynomial": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "inverse_sqrt": "inverse-square-root",
}
_TRACKERS = ("tensorboard", "wandb", "mlflow")
_POLYNOMIAL_END = 1e-7
_SAVE_STEPS = 500


class Arguments(KeyTranslation):
    """The keys that a configuration has in common with TrainingArguments."""

    default_lr = 5e-5
    default_schedule = "linear"
    default_batch = 8
    default_epochs = 3
    default_seed = 42

    def arguments(self) -> None:
        self.batch()
        self.length()
        self.optimizer()
        self.schedule()
        self.precision()
        self.validation()
        self.saving()
        self.tracking()
        self.switches()

    def batch(self) -> None:
        micro = self.whole("per_device_train_batch_size")
        micro = self.default_batch if micro is None else micro
        node = self.at("per_device_train_batch_size") or self.at("gradient_accumulation_steps")
        self.put("batch.global", node, micro * (self.whole("gradient_accumulation_steps") or 1))
        self.put("batch.micro", node, micro)
        batch = self.out["batch"].value
        assert isinstance(batch, dict)
        self.per_device = batch["global"]

    def length(self) -> None:
        """Steps, or whole epochs."""
        steps, epochs = self.whole("max_steps"), self.number("num_train_epochs")
        if steps is not None and steps > 0:
            self.put("trainer.max_steps", self.at("max_steps"), steps)
            self.fate("num_train_epochs", KeyFate.NO_EFFECT, "max_steps is the length")
            return
        self.fate("max_steps", KeyFate.NO_EFFECT, "the epochs are the length")
        epochs = self.default_epochs if epochs is None else epochs
        if epochs != int(epochs):
            what = f"{epochs} is no whole number of epochs; give {self.named('max_steps')}, the steps they have"
            self.fault(self.at("num_train_epochs"), what)
        self.put("trainer.max_epochs", self.at("num_train_epochs"), int(epochs))

    def optimizer(self) -> None:
        name = self.text("optim") or "adamw_torch"
        if self.on("adafactor"):
            name = "adafactor"
        found = OPTIMIZERS.get(name)
        if found is None:
            what = f"{name} is not an optimizer that hpclm has; choose of {', '.join(sorted(OPTIMIZERS))}"
            self.fault(self.at("optim"), what)
            return
        ours, different = found
        node = self.at("optim") or self.at("adafactor")
        self.put("optim.name", node, ours)
        if different is not None:
            self.fate("optim", KeyFate.DIFFERS, f"optim.name: {ours}; {different}")
        elif name.startswith("paged"):
            self.fate("optim", KeyFate.TAKEN, f"optim.name: {ours}; {_PAGED}")
        for key, at, default in (("lr", "learning_rate", self.default_lr), ("weight_decay", "weight_decay", 0.0)):
            value = self.number(at)
            self.put(f"optim.{key}", self.at(at), default if value is None else value)
        betas = [self.number("adam_beta1"), self.number("adam_beta2")]
        made = [default if beta is None else beta for beta, default in zip(betas, (0.9, 0.999), strict=True)]
        if ours == "sgd":
            made[0] = 0.0
        self.put("optim.betas", self.at("adam_beta1") or self.at("adam_beta2"), made)
        epsilon = self.number("adam_epsilon")
        self.put("optim.epsilon", self.at("adam_epsilon"), 1e-8 if epsilon is None else epsilon)
        clip = self.number("max_grad_norm")
        if clip is not None:
            self.put("trainer.gradient_clip_norm", self.at("max_grad_norm"), clip)

    def schedule(self) -> None:
        name, node = self.text("lr_scheduler_type") or self.default_schedule, self.at("lr_scheduler_type")
        if name not in SCHEDULES:
            what = f"{name} is not a schedule that hpclm has; choose {', '.join(SCHEDULES)}"
            self.fault(node, what)
            return
        self.put("optim.schedule.name", node, SCHEDULES[name])
        self.put("optim.schedule.from_zero", node, True)
        self._schedule_options(name)
        if name == "constant":
            for key in ("warmup_steps", "warmup_ratio"):
                self.fate(key, KeyFate.NO_EFFECT, "schedule constant has no warm-up; constant_with_warmup has")
        else:
            self.warmup()
        if name == "inverse_sqrt" and not self.number("warmup_steps") and not self.number("warmup_ratio"):
            self.fault(node, "inverse_sqrt without a warm-up falls over 10,000 steps, which hpclm has not; give one")

    def _schedule_options(self, name: str) -> None:
        """The lowest rate, and what is harmless of the rest."""
        lr = self.number("learning_rate")
        lr = self.default_lr if lr is None else lr
        harmless: dict[str, dict[str, float]] = {
            "cosine": {"num_cycles": 0.5},
            "cosine_with_restarts": {"num_cycles": 1},
            "polynomial": {"power": 1},
        }
        low = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "polynomial": ("lr_end",)}.get(name, ())
        least = _POLYNOMIAL_END if name == "polynomial" else None
        for key, node in self.options("lr_scheduler_kwargs").items():
            value = None if node.value is None else self.numeric(node, key)
            if key in low and value is not None:
                least = value * lr if key == "min_lr_rate" else value
            elif value is not None and value != harmless.get(name, {}).get(key):
                self.fault(node, f"{key} {value} of {name} is not supported; leave it out")
        if name == "cosine_with_min_lr" and least is None:
            self.fault(self.at("lr_scheduler_type"), "cosine_with_min_lr needs lr_scheduler_kwargs: {min_lr: RATE}")
        if least is not None:
            self.put("optim.min_lr", self.at("lr_scheduler_kwargs") or self.at("lr_scheduler_type"), least)

    def warmup(self) -> None:
        """Steps, or a share of all steps, which transformers 5 also takes as steps below 1."""
        steps, ratio = self.number("warmup_steps"), self.number("warmup_ratio")
        if steps:
            if ratio is not None:
                self.fate("warmup_ratio", KeyFate.NO_EFFECT, "warmup_steps is given")
            if steps < 1:
                self.put("optim.schedule.warmup_ratio", self.at("warmup_steps"), float(steps))
            else:
                self.put("optim.schedule.warmup_steps", self.at("warmup_steps"), self.whole("warmup_steps") or 0)
        elif ratio:
            self.put("optim.schedule.warmup_ratio", self.at("warmup_ratio"), float(ratio))

    def precision(self) -> None:
        found = [name for name in ("bf16", "fp16", "tf32") if self.on(name)]
        if "bf16" in found and "fp16" in found:
            self.fault(self.at("fp16"), "bf16 and fp16 exclude each other; keep one")
        if found:
            self.put("trainer.precision", self.at(found[0]), found[0])
        if found[:1] != ["tf32"] and "tf32" in found:
            self.fate("tf32", KeyFate.NO_EFFECT, f"products are of {found[0]}")

    def validation(self) -> None:
        """Steps between validations, or a share of an epoch."""
        key = "eval_strategy" if self.at("eval_strategy") is not None else "evaluation_strategy"
        strategy, node = self.text(key) or "no", self.at("eval_steps")
        if strategy == "epoch":
            self.put("trainer.val_check_interval", self.at(key), 1.0)
        elif strategy == "steps":
            self.every(node)
        elif strategy != "no":
            self.fault(self.at(key), f"{strategy[:40]!r} is not supported; choose steps, epoch or no")
        if strategy != "steps":
            self.fate("eval_steps", KeyFate.NO_EFFECT, f"{self.named('eval_strategy')} is not steps")
        if strategy == "no":
            self.fate(key, KeyFate.NO_EFFECT, "validation rows, if there are any, are read once an epoch")

    def every(self, node: Node | None) -> None:
        """Steps between validations; below 1 a share of all steps."""
        steps = self.number("eval_steps") or self.number("logging_steps")
        if steps is None or steps >= 1:
            self.put("trainer.val_check_interval", node, int(steps or _SAVE_STEPS))
            return
        total, epochs = self.whole("max_steps"), self.number("num_train_epochs")
        if total is not None and total > 0:
            self.put("trainer.val_check_interval", node, max(1, round(steps * total)))
            return
        share = steps * (self.default_epochs if epochs is None else epochs)
        if 0 < share <= 1:
            self.put("trainer.val_check_interval", node, float(share))
        else:
            what = f"{self.named('eval_steps')} {steps} is {share:g} epochs; give whole steps, or up to one epoch"
            self.fault(node, what)

    def saving(self) -> None:
        strategy, steps = self.text("save_strategy") or "steps", self.number("save_steps")
        if strategy == "steps" and (steps is None or steps >= 1):
            self.put("checkpoint.save_interval_steps", self.at("save_steps"), int(steps or _SAVE_STEPS))
        elif strategy in ("steps", "epoch", "best", "no"):
            for key in ("save_strategy", "save_steps"):
                what = (
                    "checkpoints are saved at each validation and at the end; checkpoint.save_interval_steps saves more"
                )
                self.fate(key, KeyFate.NO_EFFECT, what)
        else:
            self.fault(self.at("save_strategy"), f"{strategy[:40]!r} is not supported; choose steps or epoch")
        kept = self.whole("save_total_limit")
        if kept is not None and kept > 0:
            self.put("checkpoint.keep_last", self.at("save_total_limit"), kept)

    def tracking(self) -> None:
        wanted, node = self.texts("report_to"), self.at("report_to")
        if "all" in wanted:
            self.fate("report_to", KeyFate.NO_EFFECT, "all means what is installed; name tensorboard, wandb or mlflow")
        others = [name for name in wanted if name not in (*_TRACKERS, "none", "all")]
        if others:
            note = f"hpclm has {', '.join(_TRACKERS)} and those of packages, not {', '.join(others)[:60]}"
            self.fate("report_to", KeyFate.NO_EFFECT, note)
        name = self.text("run_name")
        for tracker in _TRACKERS:
            if tracker in wanted:
                self.put(f"tracking.{tracker}", node, {"name": name} if tracker == "wandb" and name else True)
        if "wandb" not in wanted:
            self.fate("run_name", KeyFate.NO_EFFECT, "a run is called by the file's name and the date")

    def switches(self) -> None:
        steps = self.number("logging_steps")
        if steps is not None and steps >= 1:
            self.put("trainer.log_interval_steps", self.at("logging_steps"), int(steps))
        elif steps is not None:
            self.fate("logging_steps", KeyFate.NO_EFFECT, "a share of all steps; every step is logged")
        seed = self.whole("seed")
        self.put("trainer.seed", self.at("seed"), self.default_seed if seed is None else seed)
        if self.on("full_determinism"):
            self.put("trainer.deterministic", self.at("full_determinism"), True)
        for key in ("use_cpu", "no_cuda"):
            if self.on(key):
                self.put("resources.device", self.at(key), "cpu")
