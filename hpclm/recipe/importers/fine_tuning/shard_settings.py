"""DeepSpeed's and FSDP's settings in a configuration, as the recipe's `sharding`.

Sources: deepspeedai/DeepSpeed docs/_pages/config-json.md; huggingface/transformers 4.40 to 5.24, training_args.py.
"""

from __future__ import annotations

from typing import Any

from hpclm.recipe.importers.fine_tuning.named_files import json_object, located
from hpclm.recipe.importers.fine_tuning.training_arguments import Arguments
from hpclm.recipe.importers.importer import KeyFate
from hpclm.recipe.tree import Node

_DIVIDED = ("full_shard", "shard_grad_op")
_WRAPS = ("auto_wrap", "offload", "true", "size", "")
# Settings of FSDP that change how, not what; with and without fsdp_ in front.
_HOW = frozenset(
    (
        "version",
        "min_num_params",
        "transformer_layer_cls_to_wrap",
        "auto_wrap_policy",
        "backward_prefetch",
        "forward_prefetch",
        "limit_all_gathers",
        "use_orig_params",
        "sync_module_states",
        "state_dict_type",
        "cpu_ram_efficient_loading",
        "reshard_after_forward",
        "final_state_dict_type",
        "cpu_offload_pin_memory",
        "xla",
        "xla_fsdp_v2",
        "xla_fsdp_settings",
        "xla_fsdp_grad_ckpt",
        "ignored_modules",
        "buffer_dtype",
        "activation_checkpointing",
        "offload_params",
        "cpu_offload",
        "sharding_strategy",
        "mixed_precision_policy",
    )
)


class ShardSettings(Arguments):
    """The keys deepspeed, fsdp and fsdp_config."""

    checkpointed = False

    def sharding(self) -> None:
        if self.at("deepspeed") is not None:
            self.deepspeed()
        self.fsdp()
        default = self.on_or_named("activation_checkpointing", default=self.checkpointed)
        if self.on_or_named("gradient_checkpointing", default=default):
            node = self.at("gradient_checkpointing") or self.at("activation_checkpointing")
            self.put("sharding.checkpointing", node, True)

    def on_or_named(self, key: str, *, default: bool) -> bool:
        """A switch that may also name a way, as axolotl's `offload`."""
        node = self.at(key)
        if node is not None and node.value in ("offload", "offload_disk", "unsloth"):
            return True
        return self.on(key, default=default)

    def deepspeed(self) -> None:
        node = self.at("deepspeed")
        assert node is not None
        if not isinstance(node.value, str):
            self.fault(node, f"{self.named('deepspeed')} is a mapping here; write it as JSON into a file, and its name")
            return
        path = located(self.folder, node.value)
        try:
            settings = json_object(self.folder / path)
        except ValueError as error:
            self.fault(node, f"{node.value}: {error}; give the path of a DeepSpeed configuration")
            return
        layers = settings.get("tensor_parallel")
        if isinstance(layers, dict) and layers.get("autotp_size") not in (None, 0, 1):
            self.fault(node, f"{node.value}: tensor_parallel: layers are not divided by engine hf; remove it there")
        zero = settings.get("zero_optimization")
        zero = zero if isinstance(zero, dict) else {}
        stage = zero.get("stage", 0)
        if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
            self.fault(node, f"{node.value}: zero_optimization.stage must be 0, 1, 2 or 3")
        elif stage == 0:
            self.fate("deepspeed", KeyFate.NO_EFFECT, "its stage is 0, which divides nothing")
        else:
            self.put("sharding.strategy", node, f"zero{stage}")
            self.put("sharding.deepspeed", node, path)
            self._offload(node, zero)

    def _offload(self, node: Node, zero: dict[str, Any]) -> None:
        """What is kept outside the devices, and on which disk."""
        parts = {key: zero.get(f"offload_{key}") for key in ("optimizer", "param")}
        used = {
            key: one for key, one in parts.items() if isinstance(one, dict) and one.get("device") in ("cpu", "nvme")
        }
        if not used:
            return
        self.put("sharding.offload", node, "all" if "param" in used else "optimizer")
        if "optimizer" not in used:
            what = "sharding.deepspeed; beside the weights, the optimizer's state is offloaded too"
            self.fate("deepspeed", KeyFate.TAKEN, what)
        disk = next((one.get("nvme_path") for one in used.values() if one["device"] == "nvme"), None)
        if isinstance(disk, str):
            self.put("sharding.nvme", node, disk)

    def fsdp(self) -> None:
        node = self.at("fsdp")
        words = {"full_shard"} if node is not None and node.value is True else set(self._words(node))
        options = self._fsdp_options()
        asked = bool(words) or self._means_fsdp(options)
        if not asked:
            self.fate("fsdp_config", KeyFate.NO_EFFECT, "fsdp is not asked for")
            return
        if "deepspeed" in self.entries and self.at("deepspeed") is not None:
            self.fault(node or self.at("fsdp_config"), "fsdp and deepspeed exclude each other; keep one")
            return
        place = node or self.at("fsdp_config")
        strategy = options.get("sharding_strategy")
        named = str(strategy.value).lower() if strategy is not None else ""
        for word in {*words, named} - {*_DIVIDED, *_WRAPS}:
            if word == "no_shard":
                return
            what = "is not supported; choose full_shard, and of hybrid ones give hpclm.sharding.group_size beside it"
            self.fault(place, f"{word[:40]} {what}")
        self.put("sharding.strategy", place, "fsdp")
        offload = options.get("offload_params", options.get("cpu_offload"))
        if "offload" in words or (offload is not None and offload.value in (True, "true")):
            self.put("sharding.offload", place, "all")
        again = options.get("activation_checkpointing")
        if again is not None and again.value in (True, "true"):
            self.put("sharding.checkpointing", place, True)

    def _means_fsdp(self, options: dict[str, Node]) -> bool:
        """Whether the options alone ask for FSDP."""
        return False

    def _words(self, node: Node | None) -> list[str]:
        if node is None or isinstance(node.value, bool | dict):
            return []
        items = [item.value for item in node.value] if isinstance(node.value, list) else [node.value]
        return [word for item in items for word in str(item).lower().split()]

    def _fsdp_options(self) -> dict[str, Node]:
        """By their names without fsdp_ in front."""
        node = self.at("fsdp_config")
        if node is None:
            return {}
        if isinstance(node.value, str) and not node.value.lstrip().startswith("{"):
            self.fault(node, "fsdp_config is a file's name here; write its keys in this file")
            return {}
        found = {key.removeprefix("fsdp_"): value for key, value in self.options("fsdp_config").items()}
        for key, value in found.items():
            if key not in _HOW:
                self.fault(value, f"fsdp_config.{key[:40]} is not a setting of FSDP that hpclm knows; remove it")
        return found
