"""megatron_gpt_prompt_learning_config.yaml and the launcher's prompt_learning/gpt3: training."""

from __future__ import annotations

from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.importers.nemo.translation import Translation, noded, template_of
from hpclm.recipe.tree import Node

_ADAMS = ("fused_adam", "adam", "adamw", "distributed_fused_adam", "megatron_fused_adam")
_METRICS = {"accuracy": "exact_match", "exact_string_match": "exact_match", "bleu": "bleu", "rouge": "rouge_l"}


class Training(Translation):
    def translate(self) -> None:
        style = self.at("model.virtual_prompt_style")
        if style is not None and style.value not in ("p-tuning", "prompt-tuning"):
            self.fault(style, f"{style.value!r} does not train; choose p-tuning or prompt-tuning")
        named = self.at("name") or self.at("run.name")
        self.put("name", named or self.root, ... if named else "nemo")
        self.time_limit()
        task = style.value if style else "p-tuning"
        self.put("task", style or self.root, task)
        # a stage without a name has its task's
        command = f"hpclm model convert RUN/stages/{task}/checkpoints prompts.nemo --to nemo"
        for key in ("model.nemo_path", "model.save_nemo_on_validation_end"):
            self.changed[key] = (KeyFate.NOT_SUPPORTED, command)
        self.shared("model.")
        self.take("trainer.log_every_n_steps", "trainer.val_check_interval", "model.seed")
        self.take("model.global_batch_size", "model.micro_batch_size", "model.sequence_parallel")
        self.take("trainer.gradient_clip_val")
        self.length()
        self.recompute()
        self.stopping()
        self.path("model.checkpoint", self.at("model.language_model_path"))
        self.path("prompts", self.at("model.restore_path"))
        self.templates()
        self.encoder(str(task))
        self.metrics()
        self.files("data.train", self.at("model.data.train_ds"))
        self.files("data.validation", self.at("model.data.validation_ds"))
        self.take("model.data.add_eos", "model.data.add_bos", "model.data.min_seq_length")
        self.longest()
        self.optimizer()
        kept = self.at("exp_manager.checkpoint_callback_params.save_top_k")
        self.put("checkpoint.keep_best", kept, "all" if kept is not None and kept.value == -1 else ...)

    def longest(self) -> None:
        """NeMo takes the smaller of max_seq_length and the model's encoder_seq_length."""
        written, model = self.at("model.data.max_seq_length"), self.at("model.language_model_path")
        positions = (
            self.config_of(model.value).get("encoder_seq_length") if model and isinstance(model.value, str) else 0
        )
        if written is not None and isinstance(written.value, int) and isinstance(positions, int):
            shorter = 0 < positions < written.value
            self.put("data.max_seq_length", written, positions if shorter else ...)
            if shorter:
                note = f"data.max_seq_length: {positions}, the model's encoder_seq_length"
                self.changed["model.data.max_seq_length"] = (KeyFate.TAKEN, note)
        else:
            self.put("data.max_seq_length", written)

    def length(self) -> None:
        steps, epochs = self.at("trainer.max_steps"), self.at("trainer.max_epochs")
        if steps is not None and steps.value != -1:
            self.put("trainer.max_steps", steps)
            if epochs is not None:
                self.changed["trainer.max_epochs"] = (KeyFate.NOT_SUPPORTED, "max_steps sets the length")
        else:
            self.put("trainer.max_epochs", epochs)
            self.changed["trainer.max_steps"] = (KeyFate.NO_EFFECT, "-1 means no limit")
        batches = self.at("trainer.limit_val_batches")
        if batches is not None and isinstance(batches.value, int):
            self.put("trainer.val_batches", batches)
        elif batches is not None:
            self.changed["trainer.limit_val_batches"] = (
                KeyFate.NOT_SUPPORTED,
                "a fraction of the set is not supported",
            )

    def recompute(self) -> None:
        kind = self.at("model.activations_checkpoint_granularity")
        if kind is None:
            return
        self.put("trainer.recompute.granularity", kind)
        if kind.value == "full":
            method = self.at("model.activations_checkpoint_method")
            self.put("trainer.recompute.method", method or kind, ... if method else "uniform")
            self.take("model.activations_checkpoint_num_layers")

    def stopping(self) -> None:
        wanted = self.at("exp_manager.create_early_stopping_callback")
        if wanted is None or wanted.value is not True:
            return
        self.put("trainer.early_stopping", wanted, {})
        self.take("exp_manager.early_stopping_callback_params.patience")
        self.take("exp_manager.early_stopping_callback_params.min_delta")

    def templates(self) -> None:
        """The templates of the new tasks, and of the existing ones if tasks are added to trained prompts."""
        written, new = self.at("model.task_templates"), self.at("model.new_tasks")
        if written is None or not isinstance(written.value, list):
            return
        existing = self.at("model.existing_tasks") if self.at("model.restore_path") else None
        if existing is None:
            self.changed["model.existing_tasks"] = (KeyFate.NO_EFFECT, "there are none without restore_path")
        wanted = [*_texts(existing), *_texts(new)]
        section = "prompt_learning" if self.root.get("model", "prompt_tuning") is None else "prompt_tuning"
        ways = _texts(self.at(f"model.{section}.new_prompt_init_methods"))
        starts = self.at(f"model.{section}.new_prompt_init_text")
        texts = [item.plain() for item in starts.value] if starts and isinstance(starts.value, list) else []
        made = []
        for item in written.value:
            plain = item.plain()
            if not isinstance(plain, dict):
                made.append(item)
                continue
            task = plain.get("taskname")
            if wanted and task not in wanted:
                continue
            entries = {key: noded(value, item.get(key) or item) for key, value in template_of(plain).items()}
            place = _texts(new).index(str(task)) if str(task) in _texts(new) else None
            prompt_tuning = self.out["task"].value == "prompt-tuning"
            if prompt_tuning and place is not None and place < len(ways):
                entries["prompt_init"] = noded(ways[place], item)
                if ways[place] == "text" and place < len(texts):
                    entries["prompt_init_text"] = noded(texts[place], item)
            made.append(Node(dict(entries), item.place))
        self.out["task_templates"] = Node(list(made), written.place)

    def encoder(self, style: str) -> None:
        if style != "prompt-tuning":
            for section in ("prompt_tuning", "prompt_learning"):
                for key in ("new_prompt_init_methods", "new_prompt_init_text"):
                    self.changed[f"model.{section}.{key}"] = (KeyFate.NO_EFFECT, "p-tuning starts from its encoder")
        if style != "p-tuning":
            for key in ("encoder_type", "dropout", "num_layers", "encoder_hidden", "init_std"):
                self.changed[f"model.p_tuning.{key}"] = (KeyFate.NO_EFFECT, "prompt-tuning has no encoder")
            return
        kind = self.at("model.p_tuning.encoder_type")
        if kind is not None:
            self.put("prompt.encoder", kind, str(kind.value).lower())
        self.take("model.p_tuning.encoder_hidden", "model.p_tuning.dropout", "model.p_tuning.init_std")
        if kind is None or str(kind.value).lower() in ("tpmlp", "embedding"):
            self.changed["model.p_tuning.num_layers"] = (KeyFate.NO_EFFECT, "tpmlp always has two layers")
        else:
            self.take("model.p_tuning.num_layers")

    def metrics(self) -> None:
        wanted, which = self.at("model.report_validation_metric"), self.at("model.validation_metric")
        if wanted is None or wanted.value is not True:
            unused = [f"model.inference.{key}" for key in self.keys_of("model.inference")]
            for key in ("model.report_validation_metric", "model.validation_metric", *unused):
                self.changed[key] = (KeyFate.NO_EFFECT, "no metric is requested")
            return
        if self.root.get("model", "inference") is not None:
            self.sampling("model.inference.")
        name = _METRICS.get(str(which.value)) if which else "exact_match"
        if name is None:
            assert which is not None
            self.fault(which, f"{which.value!r} is not a supported metric; choose {', '.join(_METRICS)}")
        self.put("trainer.val_metrics", which or wanted, [name])

    def optimizer(self) -> None:
        name = self.at("model.optim.name")
        if name is not None and name.value not in _ADAMS:
            self.fault(name, f"{name.value!r} is not supported; choose one of {', '.join(_ADAMS)}")
        self.take("model.optim.lr", "model.optim.weight_decay", "model.optim.sched.min_lr", "model.optim.betas")
        self.take("model.optim.eps")
        schedule = self.at("model.optim.sched.name")
        if self.root.get("model", "optim", "sched") is None:
            self.put("optim.schedule.name", self.root, "constant")
        elif schedule is not None and schedule.value != "CosineAnnealing":
            self.fault(
                schedule,
                f"{schedule.value!r} is not supported; choose CosineAnnealing, or remove sched for a constant rate",
            )
        for one in ("warmup", "constant"):
            self.take(f"model.optim.sched.{one}_steps", f"model.optim.sched.{one}_ratio")
        self.changed.setdefault("model.optim.sched.name", (KeyFate.TAKEN, "optim.schedule.name"))


def _texts(node: Node | None) -> list[str]:
    return [str(item.value) for item in node.value] if node and isinstance(node.value, list) else []
