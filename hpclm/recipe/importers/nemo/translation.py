"""Translates NeMo's tree into a recipe's tree; every value keeps its line in NeMo's file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from hpclm.core.errors import RecipeError
from hpclm.recipe.importers.importer import Imported, KeyFate, KeyNote
from hpclm.recipe.importers.nemo.keys import TAKEN, fate_of
from hpclm.recipe.tree import Node

_MISSING = "???"
_PRECISIONS = {"16": "fp16", "16-mixed": "fp16", "bf16": "bf16", "bf16-mixed": "bf16", "32": "fp32", "32-true": "fp32"}
_ADAMS = ("fused_adam", "adam", "adamw", "distributed_fused_adam", "megatron_fused_adam")
_METRICS = {"accuracy": "exact_match", "exact_string_match": "exact_match", "bleu": "bleu", "rouge": "rouge_l"}


def is_nemo(root: Node) -> bool:
    """Whether a tree is NeMo's, training or evaluation."""
    training = any(root.get("model", key) for key in ("language_model_path", "virtual_prompt_style"))
    return training or any(root.get(key) for key in ("virtual_prompt_model_file", "gpt_model_file"))


def translate(root: Node, templates_in: Callable[[str], Any]) -> Imported:
    """The recipe. Raises RecipeError with every error, each at its line.

    Args:
        templates_in: the task templates of a prompt-learning archive at a path, plain, or None where it cannot be read.
    """
    made = _Maker(root)
    if root.get("inference") is not None or root.get("virtual_prompt_model_file") is not None:
        made.evaluation(templates_in)
    else:
        made.training()
    made.notes_of_all()
    if made.faults:
        raise RecipeError("\n".join(made.faults))
    return Imported(Node(made.out, root.place), made.notes)


class _Maker:
    def __init__(self, root: Node) -> None:
        self.root = root
        self.out: dict[str, Node] = {"version": Node(1, root.place)}
        self.notes: list[KeyNote] = []
        self.faults: list[str] = []
        self.changed: dict[str, tuple[KeyFate, str]] = {}

    def at(self, key: str) -> Node | None:
        """NeMo's value of a key; None where it is not written, null, or `???`."""
        node = self.root.get(*key.split("."))
        return None if node is None or node.value is None or node.value == _MISSING else node

    def put(self, ours: str, node: Node | None, value: Any = ...) -> None:
        """Set hpclm's key to `value` (by default the node's own) at the node's place."""
        if node is None:
            return
        *sections, last = ours.split(".")
        entries = self.out
        for section in sections:
            inner = entries.setdefault(section, Node({}, node.place)).value
            assert isinstance(inner, dict)
            entries = inner
        entries[last] = node if value is ... else _noded(value, node)

    def take(self, *keys: str) -> None:
        """Keys whose value is used unchanged."""
        for key in keys:
            self.put(TAKEN[key], self.at(key))

    def take_or(self, key: str, *, default: Any) -> None:
        node = self.at(key)
        self.put(TAKEN[key], node or self.root, default if node is None else ...)

    def fault(self, node: Node, message: str) -> None:
        self.faults.append(f"{node.place}: {message}")

    def training(self) -> None:
        style = self.at("model.virtual_prompt_style")
        if style is not None and style.value not in ("p-tuning", "prompt-tuning"):
            self.fault(style, f"{style.value!r} does not train; choose p-tuning or prompt-tuning")
        self.put("name", self.at("name") or self.root, ... if self.at("name") else "nemo")
        self.put("task", style or self.root, ... if style else "p-tuning")
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
        self.encoder(str(style.value) if style else "p-tuning")
        self.metrics()
        self.files("data.train", self.at("model.data.train_ds"))
        self.files("data.validation", self.at("model.data.validation_ds"))
        self.take("model.data.add_eos", "model.data.add_bos", "model.data.max_seq_length", "model.data.min_seq_length")
        self.optimizer()
        self.put("checkpoint.keep_best", self.at("exp_manager.checkpoint_callback_params.save_top_k"))

    def evaluation(self, templates_in: Callable[[str], Any]) -> None:
        self.put("name", self.root, "nemo-evaluation")
        self.put("task", self.root, "evaluate")
        self.shared("")
        self.path("model.checkpoint", self.at("gpt_model_file"))
        prompts = self.at("virtual_prompt_model_file")
        self.path("prompts", prompts)
        self.files("data.test", self.at("data_paths"))
        if prompts is not None and isinstance(prompts.value, str):
            written = templates_in(prompts.value)
            known = [one for one in written if isinstance(one, dict)] if isinstance(written, list) else []
            if known:
                self.put("task_templates", prompts, [_template(one) for one in known])
        for key in (
            "top_k",
            "temperature",
            "tokens_to_generate",
            "min_tokens_to_generate",
            "end_strings",
            "batch_size",
        ):
            self.take(f"inference.{key}")
        # NeMo's default differs from hpclm's
        self.take_or("inference.greedy", default=False)
        self.take_or("inference.add_BOS", default=True)
        top, greedy = self.at("inference.top_p"), self.at("inference.greedy")
        if top is not None and top.value == 0:
            self.put("generation.top_p", top, 1.0)
        else:
            self.take_or("inference.top_p", default=0.9)
        if greedy is not None and greedy.value is True:
            self.changed["inference.repetition_penalty"] = (KeyFate.NO_EFFECT, "greedy answers are not penalised")
        else:
            self.take_or("inference.repetition_penalty", default=1.2)

    def shared(self, prefix: str) -> None:
        """Devices, precision and split."""
        devices = self.at("trainer.devices")
        self.put("resources.devices_per_node", devices)
        self.take("trainer.num_nodes")
        accelerator = self.at("trainer.accelerator")
        if accelerator is not None and accelerator.value not in ("gpu", "cpu"):
            self.fault(accelerator, f"{accelerator.value!r} is not supported; choose gpu or cpu")
        self.take("trainer.accelerator")
        precision = self.at("trainer.precision")
        if precision is not None:
            word = _PRECISIONS.get(str(precision.value))
            if word is None:
                self.fault(precision, f"{precision.value!r} is not a valid precision; choose 16, bf16 or 32")
            self.put("trainer.precision", precision, word or "fp32")
        self.take(f"{prefix}tensor_model_parallel_size", f"{prefix}pipeline_model_parallel_size")

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
        ways = _texts(self.at("model.prompt_tuning.new_prompt_init_methods"))
        starts = self.at("model.prompt_tuning.new_prompt_init_text")
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
            entries = {key: _noded(value, item.get(key) or item) for key, value in _template(plain).items()}
            place = _texts(new).index(str(task)) if str(task) in _texts(new) else None
            prompt_tuning = self.out["task"].value == "prompt-tuning"
            if prompt_tuning and place is not None and place < len(ways):
                entries["prompt_init"] = _noded(ways[place], item)
                if ways[place] == "text" and place < len(texts):
                    entries["prompt_init_text"] = _noded(texts[place], item)
            made.append(Node(dict(entries), item.place))
        self.out["task_templates"] = Node(list(made), written.place)

    def encoder(self, style: str) -> None:
        if style != "prompt-tuning":
            for key in ("new_prompt_init_methods", "new_prompt_init_text"):
                self.changed[f"model.prompt_tuning.{key}"] = (KeyFate.NO_EFFECT, "p-tuning starts from its encoder")
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
            for key in ("report_validation_metric", "validation_metric"):
                self.changed[f"model.{key}"] = (KeyFate.NO_EFFECT, "no metric is requested")
            return
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
        schedule = self.at("model.optim.sched.name")
        if self.root.get("model", "optim", "sched") is None:
            self.put("optim.schedule.name", self.root, "constant")
        elif schedule is not None and schedule.value != "CosineAnnealing":
            self.fault(
                schedule,
                f"{schedule.value!r} is not supported; choose CosineAnnealing, or remove sched for a constant rate",
            )
        self.take("model.optim.sched.warmup_steps", "model.optim.sched.constant_steps")
        self.changed.setdefault("model.optim.sched.name", (KeyFate.TAKEN, "optim.schedule.name"))

    def path(self, ours: str, node: Node | None) -> None:
        if node is not None and isinstance(node.value, str) and ours == "prompts" and "/" not in node.value:
            self.put(ours, node, f"./{node.value}")
        else:
            self.put(ours, node)

    def files(self, ours: str, node: Node | None) -> None:
        """One path or a list of them."""
        self.put(ours, node, ... if node is None or isinstance(node.value, list) else [node.plain()])

    def notes_of_all(self) -> None:
        """A note for each key of the file; unknown keys are errors."""
        for key, node in _keys(self.root, ""):
            known = self.changed.get(key) or fate_of(key)
            if known is None:
                near = difflib.get_close_matches(key, list(TAKEN), n=1)
                hint = f"did you mean {near[0]}? " if near else "remove it, or "
                self.fault(node, f"{key}: unknown key of NeMo's prompt learning; {hint}see hpclm recipe import")
                continue
            if node.value == _MISSING and known[0] is KeyFate.TAKEN:
                self.fault(node, f"{key} must be given; write it, or --set {key}=…")
            self.notes.append(KeyNote(key, node.place.origin, *known))


def _keys(node: Node, prefix: str) -> Iterator[tuple[str, Node]]:
    """Every key that has a value rather than a section; a list is a value."""
    if isinstance(node.value, dict) and node.value:
        for key, inner in node.value.items():
            yield from _keys(inner, f"{prefix}.{key}" if prefix else key)
    elif prefix:
        yield prefix, node


def _template(written: dict[str, Any]) -> dict[str, Any]:
    """NeMo's task template with NeMo's defaults, which differ from hpclm's."""
    known = ("taskname", "prompt_template", "total_virtual_tokens", "virtual_token_splits", "truncate_field")
    found = {key: written[key] for key in known if key in written}
    return found | {
        "answer_only_loss": bool(written.get("answer_only_loss", False)),
        "answer_field": written.get("answer_field"),
    }


def _texts(node: Node | None) -> list[str]:
    return [str(item.value) for item in node.value] if node and isinstance(node.value, list) else []


def _noded(value: Any, node: Node) -> Node:
    """A plain value at a node's place."""
    if isinstance(value, dict):
        return Node({key: _noded(item, node) for key, item in value.items()}, node.place)
    if isinstance(value, list | tuple):
        return Node([_noded(item, node) for item in value], node.place)
    return Node(value, node.place)
