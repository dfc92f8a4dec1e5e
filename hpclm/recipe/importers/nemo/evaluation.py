"""megatron_gpt_prompt_learning_inference.yaml and the launcher's evaluation/prompt_gpt3: answers of the test rows."""

from __future__ import annotations

from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.importers.nemo.translation import Translation, template_of
from hpclm.recipe.tree import Node

_LAUNCHER = "nemo-gpt3-prompt"
# What max_seq_length is where nobody chose it: the model decides then.
_LONGEST = 8192


def is_launcher_evaluation(root: Node) -> bool:
    kind = root.get("model", "model_type")
    return kind is not None and kind.value == _LAUNCHER


class Evaluation(Translation):
    def translate(self) -> None:
        if is_launcher_evaluation(self.root):
            self.launcher()
        else:
            self.evaluation()

    def evaluation(self) -> None:
        self.put("name", self.root, "nemo-evaluation")
        self.put("task", self.root, "evaluate")
        self.archives(self.at("gpt_model_file"), self.at("virtual_prompt_model_file"))
        self.shared("")
        self.files("data.test", self.at("data_paths"))
        longest = self.at("max_seq_length")
        if longest is not None and longest.value != _LONGEST:
            self.put("data.max_seq_length", longest)
            self.changed["max_seq_length"] = (KeyFate.TAKEN, "data.max_seq_length")
        self.take("inference.end_strings", "inference.batch_size")
        self.take_or("inference.add_BOS", default=True)
        self.sampling("inference.")

    def launcher(self) -> None:
        """Its accuracy, whether the most likely token is right at each place of the answer, is `exact_match` here."""
        named = self.at("run.name")
        self.put("name", named or self.root, ... if named else "nemo-evaluation")
        self.put("task", self.root, "evaluate")
        self.time_limit()
        plain = self.at("model.disable_special_tokens")
        prompts = self.at("model.nemo_model")
        self.archives(None, prompts, with_prompts=plain is None or plain.value is not True)
        self.take("run.nodes", "run.ntasks_per_node")
        self.precision(self.at("model.precision"))
        self.take("model.tensor_model_parallel_size", "model.pipeline_model_parallel_size", "model.eval_batch_size")
        self.files("data.test", self.at("model.prompt_dataset_paths"))
        self.put("generation.greedy", self.root, True)
        self.put("generation.add_bos", self.root, False)

    def archives(self, base: Node | None, prompts: Node | None, *, with_prompts: bool = True) -> None:
        """The base model and the prompts; their archive knows the templates, and the base they were trained with."""
        trained = self.config_of(prompts.value) if prompts is not None and isinstance(prompts.value, str) else {}
        if with_prompts:
            self.path("prompts", prompts)
        path = trained.get("language_model_path")
        if base is None and prompts is not None and isinstance(path, str):
            self.put("model.checkpoint", prompts, path if "/" in path else f"./{path}")
        self.path("model.checkpoint", base)
        checkpoint = self.out.get("model") and self.out["model"].get("checkpoint")
        self.archived = self.config_of(str(checkpoint.value)) if checkpoint else {}
        written = trained.get("task_templates")
        known = [template_of(one) for one in written if isinstance(one, dict)] if isinstance(written, list) else []
        if prompts is not None and known:
            tasks = self.tasks_of(str(prompts.value))
            used = [one for one in known if one["taskname"] in tasks] if tasks else known
            self.put("task_templates", prompts, used)
            if unused := [str(one["taskname"]) for one in known if one not in used]:
                key = next(key for key in ("virtual_prompt_model_file", "model.nemo_model") if self.at(key) is prompts)
                self.changed[key] = (
                    KeyFate.TAKEN,
                    f"prompts; without templates that it has no prompts for: {', '.join(unused)}",
                )
