"""From Megatron-LM's flags to a recipe: values, Megatron-LM's own defaults, and a note for each flag."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, get_args

from hpclm.core.checkpoint_layout import CheckpointFolder
from hpclm.core.errors import RecipeError
from hpclm.core.parallel_spec import RecomputeModule
from hpclm.recipe.importers.importer import Imported, KeyFate, KeyNote
from hpclm.recipe.importers.megatron import other_flags
from hpclm.recipe.importers.megatron.keys import DEFAULTS, NO_EFFECT, NORMS, POSITIONS, REFUSED, STYLES, TAKEN
from hpclm.recipe.tree import Node, Place

_SENTENCEPIECE = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
_NEEDED = ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "max_position_embeddings")
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_WEIGHT = re.compile(r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
_TRUE = ("True", "true", True)
_LONGEST = 40


class Flags:
    """The flags of one script, by argparse's names."""

    def __init__(self, flags: dict[str, Node], place: Place) -> None:
        self.flags, self.place = flags, place
        self.out: dict[str, Node] = {"version": Node(1, place)}
        self.faults: list[str] = []
        self.fates: dict[str, tuple[KeyFate, str]] = {}

    def translated(self) -> Imported:
        """The recipe. Raises RecipeError with every fault at its line."""
        self._fates()
        stem = _NAME.sub("-", Path(self.place.origin.rpartition(":")[0]).stem).strip("-.") or "megatron"
        self._put("name", self.place, stem[:64])
        self._put("task", self.place, "pretrain")
        self._model()
        self._split_and_batch()
        self._training()
        self._schedule()
        self._data()
        self._tokenizer()
        for name in _NEEDED:
            if name not in self.flags and not (name == "max_position_embeddings" and self._rope()):
                self.faults.append(f"{self.place}: --{name.replace('_', '-')} is missing; add it")
        if self.faults:
            raise RecipeError("\n".join(self.faults))
        notes = [
            KeyNote(f"--{name.replace('_', '-')}", str(self.flags[name].place.origin), *fate)
            for name, fate in self.fates.items()
        ]
        return Imported(Node(self.out, self.place), notes)

    def _fates(self) -> None:
        """What becomes of each flag; refused ones are faults."""
        for name, node in self.flags.items():
            if name in TAKEN:
                self.fates[name] = KeyFate.TAKEN, TAKEN[name][0]
            elif name in NO_EFFECT:
                self.fates[name] = KeyFate.NO_EFFECT, NO_EFFECT[name].strip("()")
            elif name == "no_position_embedding" and self._rope():
                self.fates[name] = KeyFate.NO_EFFECT, "rope has no table of positions"
            elif name in REFUSED:
                harmless, why = REFUSED[name]
                if harmless is not None and str(node.value) in (harmless, harmless.removesuffix(".0")):
                    self.fates[name] = KeyFate.NO_EFFECT, f"{harmless} is what there is"
                else:
                    self.faults.append(f"{node.place}: {why}")
            else:
                idle, why = other_flags.fate(name)
                if idle:
                    self.fates[name] = KeyFate.NO_EFFECT, why
                else:
                    self.faults.append(f"{node.place}: {why}")

    # values

    def _node(self, name: str) -> Node | None:
        node = self.flags.get(name)
        return None if node is None or node.value is None or node.value is False else node

    def _put(self, key: str, place: Place, value: Any) -> None:
        *sections, last = key.split(".")
        entries = self.out
        for section in sections:
            inner = entries.setdefault(section, Node({}, place)).value
            assert isinstance(inner, dict)
            entries = inner
        entries[last] = _noded(value, place)

    def _text(self, name: str) -> str | None:
        """A flag's one value; a fault where it is several, or known only when the script runs."""
        node = self._node(name)
        if node is None:
            return None
        if isinstance(node.value, list) or node.value is True:
            self.faults.append(f"{node.place}: needs one value")
            return None
        text = str(node.value)
        if re.search(r"[$`]", text):
            self.faults.append(f"{node.place}: {text} is known only when the script runs; give {name}=VALUE")
            return None
        return text

    def _number(self, name: str) -> float | None:
        text = self._text(name)
        if text is None:
            return None
        whole = TAKEN[name][1] == "whole"
        try:
            if len(text) > _LONGEST:
                raise ValueError
            number = int(text.replace("_", "")) if whole else float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
        except ValueError:
            kind = "a whole number" if whole else "a number"
            self.faults.append(f"{self.flags[name].place}: {text[:_LONGEST]!r} is not {kind}")
            return None

    def _is_on(self, name: str) -> bool:
        node = self._node(name)
        return node is not None and node.value in _TRUE

    def _take(self, *names: str) -> None:
        """Numbers, texts and switches whose value is the recipe's."""
        for name in names:
            key, kind = TAKEN[name]
            value: Any = None
            if kind == "switch":
                value = True if self._is_on(name) else None
            else:
                value = self._number(name) if kind in ("whole", "number") else self._text(name)
            if value is not None:
                self._put(key, self.flags[name].place, value)

    def _default(self, key: str) -> None:
        if Node(self.out, Place("")).get(*key.split(".")) is None:
            self._put(key, self.place, DEFAULTS[key])

    def _choice(self, name: str, words: dict[str, str]) -> str | None:
        text = self._text(name)
        if text is None:
            return None
        if text not in words:
            self.faults.append(f"{self.flags[name].place}: {text} is not supported; choose {', '.join(words)}")
            return None
        return words[text]

    # sections

    def _rope(self) -> bool:
        return self._text("position_embedding_type") == "rope" or self._is_on("use_rotary_position_embeddings")

    def _model(self) -> None:
        self._take("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels")
        self._take("max_position_embeddings", "hidden_dropout", "attention_dropout", "init_method_std", "vocab_size")
        self._take(
            "rotary_base", "rotary_percent", "rotary_seq_len_interpolation_factor", "add_qkv_bias", "qk_layernorm"
        )
        self._take("norm_epsilon", "layernorm_epsilon")
        if self._is_on("group_query_attention"):
            self._put("model.num_query_groups", self.flags["group_query_attention"].place, 1)
            self._take("num_query_groups")
        elif "num_query_groups" in self.flags:
            self.fates["num_query_groups"] = KeyFate.NO_EFFECT, "without --group-query-attention"
        kind = self._choice("position_embedding_type", POSITIONS)
        if kind is not None or self._rope():
            place = self._place_of("position_embedding_type", "use_rotary_position_embeddings")
            self._put("model.position_embedding", place, "rope" if self._rope() else kind)
        if self._is_on("use_rope_scaling"):
            self._put("model.rotary_scaling_factor", self.flags["use_rope_scaling"].place, 8.0)
            self._take("rope_scaling_factor")
        norm = self._choice("normalization", NORMS)
        if norm is not None:
            self._put("model.normalization", self.flags["normalization"].place, norm)
        if self._is_on("apply_layernorm_1p"):
            if norm == "rmsnorm":
                self.faults.append(
                    f"{self.flags['apply_layernorm_1p'].place}: there is no RMSNorm with a scale less one"
                )
            self._put("model.normalization", self.flags["apply_layernorm_1p"].place, "layernorm1p")
        for name in ("swiglu", "squared_relu"):
            if self._is_on(name):
                self._put("model.activation", self.flags[name].place, name)
        values = {"disable_bias_linear": False, "untie_embeddings_and_output_weights": False}
        for name, value in {**values, "use_tp_pp_dp_mapping": "tp-cp-ep-pp-dp"}.items():
            if self._is_on(name):
                self._put(TAKEN[name][0], self.flags[name].place, value)
        self._experts()
        self._default("model.hidden_dropout")
        self._default("model.attention_dropout")

    def _experts(self) -> None:
        """A mixture of experts, each as wide as the MLP of a layer without."""
        self._take("num_experts", "moe_router_topk", "moe_aux_loss_coeff", "moe_z_loss_coeff")
        has_experts = "num_experts" in self.flags
        for name in ("expert_model_parallel_size", "expert_tensor_parallel_size"):
            if has_experts or self._text(name) != "1":
                self._take(name)
            else:
                self.fates[name] = KeyFate.NO_EFFECT, "1 is what there is"
        if has_experts:
            self._take("moe_ffn_hidden_size")
            self._default("model.moe_aux_loss_coeff")
        elif "moe_ffn_hidden_size" in self.flags:
            self.fates["moe_ffn_hidden_size"] = KeyFate.NO_EFFECT, "without --num-experts"

    def _split_and_batch(self) -> None:
        self._take("nproc_per_node", "nnodes", "tensor_model_parallel_size", "pipeline_model_parallel_size")
        if self._is_on("sequence_parallel") and int(self._number("tensor_model_parallel_size") or 1) == 1:
            # as validate_args does
            self.fates["sequence_parallel"] = KeyFate.NO_EFFECT, "Megatron-LM turns it off where tensor is 1"
        else:
            self._take("sequence_parallel")
        self._take("context_parallel_size", "num_virtual_stages_per_pipeline_rank", "decoder_first_pipeline_num_layers")
        self._take("decoder_last_pipeline_num_layers", "account_for_embedding_in_pipeline_split")
        self._take("account_for_loss_in_pipeline_split", "use_distributed_optimizer", "overlap_grad_reduce")
        self._layers_of_chunks()
        self._take("micro_batch_size", "global_batch_size")
        micro = self._number("micro_batch_size")
        if micro is None:
            self.faults.append(f"{self.place}: --micro-batch-size is missing; add it")
        elif "global_batch_size" not in self.flags:
            devices = int(self._number("nproc_per_node") or 1) * int(self._number("nnodes") or 1)
            splits = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
            model = math.prod(int(self._number(name) or 1) for name in splits)
            self._put("batch.global", self.flags["micro_batch_size"].place, int(micro) * max(1, devices // model))

    def _layers_of_chunks(self) -> None:
        """--num-layers-per-virtual-pipeline-stage: chunks by their layers."""
        each = self._number("num_layers_per_virtual_pipeline_stage")
        layers, pipeline = self._number("num_layers"), self._number("pipeline_model_parallel_size") or 1
        if each is None or layers is None:
            return
        place = self.flags["num_layers_per_virtual_pipeline_stage"].place
        # each counts as a layer
        layers += self._is_on("account_for_embedding_in_pipeline_split")
        layers += self._is_on("account_for_loss_in_pipeline_split")
        if each < 1 or layers % (pipeline * each):
            what = f"{each:.0f} does not divide the {layers / pipeline:g} layers of a pipeline stage"
            self.faults.append(f"{place}: {what}")
            return
        self._put("parallel.virtual_pipeline", place, int(layers // (pipeline * each)))

    def _training(self) -> None:
        if "train_iters" not in self.flags and "train_samples" not in self.flags:
            self.faults.append(f"{self.place}: --train-iters is missing; add it")
        self._take("train_iters", "train_samples")
        self._rampup()
        self._take("eval_interval", "eval_iters", "log_interval", "clip_grad", "seed", "deterministic_mode")
        self._take("persistent_save_interval", "save_interval", "async_save")
        self._take("recompute_granularity", "recompute_method", "recompute_num_layers")
        if self._is_on("recompute_activations"):
            self._put("trainer.recompute.granularity", self.flags["recompute_activations"].place, "selective")
        node = self._node("recompute_modules")
        if node is not None:
            items = node.value if isinstance(node.value, list) else [node]
            modules = [str(item.value) for item in items]
            unknown = [one for one in modules if one not in get_args(RecomputeModule)]
            if unknown:
                known = ", ".join(get_args(RecomputeModule))
                self.faults.append(f"{node.place}: {unknown[0]} is not recomputed alone here; known: {known}")
            self._put("trainer.recompute.modules", node.place, modules)
        if self._node("tensorboard_dir") is not None:
            self._put("tracking.tensorboard", self.flags["tensorboard_dir"].place, True)
        precision = [name for name in ("bf16", "fp16") if self._is_on(name)]
        if precision:
            self._put("trainer.precision", self.flags[precision[0]].place, precision[0])
        for key in ("trainer.val_check_interval", "trainer.val_batches", "trainer.log_interval_steps"):
            self._default(key)

    def _rampup(self) -> None:
        """Start, increment, samples."""
        node = self._node("rampup_batch_size")
        if node is None:
            return
        words = [str(one.value) for one in node.value] if isinstance(node.value, list) else []
        if len(words) != 3 or not all(one.isdecimal() and one.isascii() and len(one) < 16 for one in words):
            self.faults.append(f"{node.place}: needs three numbers: start, increment, samples")
            return
        for key, word in zip(("start", "increment", "samples"), words, strict=True):
            self._put(f"batch.rampup.{key}", node.place, int(word))

    def _length(self, name: str) -> int | None:
        """A length in the unit of the training's: of `name_iters` or `name_samples`."""
        found = self._number(f"{name}_{self._unit()}")
        return None if found is None else int(found)

    def _unit(self) -> str:
        return "samples" if "train_samples" in self.flags else "iters"

    def _place_of(self, *names: str) -> Place:
        return next((self.flags[name].place for name in names if name in self.flags), self.place)

    def _schedule(self) -> None:
        self._take("lr", "min_lr", "weight_decay", "adam_eps", "optimizer_cpu_offload")
        if "lr" not in self.flags:
            self.faults.append(f"{self.place}: --lr is missing; add it")
        betas = [self._number("adam_beta1"), self._number("adam_beta2")]
        if any(beta is not None for beta in betas):
            made = [default if beta is None else beta for beta, default in zip(betas, (0.9, 0.999), strict=True)]
            self._put("optim.betas", self._place_of("adam_beta1", "adam_beta2"), made)
        self._default("optim.betas")
        style = self._choice("lr_decay_style", STYLES)
        if style is not None:
            self._put("optim.schedule.name", self.flags["lr_decay_style"].place, style)
        self._default("optim.schedule.name")
        self._default("optim.schedule.from_zero")
        self._lengths(style)

    def _lengths(self, style: str | None) -> None:
        """Warm-up, decay and annealing, in steps or in samples as the training is."""
        unit, other = ("samples", "iters") if self._unit() == "samples" else ("iters", "samples")
        key = "samples" if unit == "samples" else "steps"
        for name in ("lr_decay", "lr_warmup", "lr_wsd_decay"):
            if self._node(f"{name}_{other}") is not None:
                instead = f"--{name}-{unit}".replace("_", "-")
                what = f"counts {other}, and the training {unit}; give {instead}"
                self.faults.append(f"{self.flags[f'{name}_{other}'].place}: {what}")
        total = self._length("train")
        decay = self._length("lr_decay") or total
        if total is None or decay is None:
            return
        place = self._place_of(f"lr_decay_{unit}")
        if decay > total:
            self.faults.append(f"{place}: the rate would fall for {decay} {key}, more than the {total} of the training")
        elif decay < total:
            self._put(f"optim.schedule.constant_{key}", place, total - decay)
        warmup = self._length("lr_warmup")
        fraction = self._number("lr_warmup_fraction")
        if fraction is not None:
            warmup = int(fraction * decay)
        if warmup:
            at = self._place_of("lr_warmup_fraction", f"lr_warmup_{unit}")
            self._put(f"optim.schedule.warmup_{key}", at, warmup)
        if style == "wsd":
            anneal = self._length("lr_wsd_decay")
            if anneal is None:
                self.faults.append(f"{self.flags['lr_decay_style'].place}: WSD needs --lr-wsd-decay-{unit}")
            else:
                self._put(f"optim.schedule.anneal_{key}", self._place_of(f"lr_wsd_decay_{unit}"), anneal)
            self._take("lr_wsd_decay_style")

    def _data(self) -> None:
        self._take("seq_length", "reset_position_ids", "reset_attention_mask", "eod_mask_loss", "data_cache_path")
        self._blend("data_path" if "data_path" in self.flags else "train_data_path", "paths", "weights")
        if "valid_data_path" in self.flags:
            self._blend("valid_data_path", "validation", "validation_weights")
        self._take("split")
        if "data_path" not in self.flags and "train_data_path" not in self.flags and "mock_data" not in self.flags:
            self.faults.append(f"{self.place}: --data-path is missing; give data_path=PREFIX")

    def _blend(self, name: str, paths: str, weights: str) -> None:
        """Prefixes, each behind its weight where there are weights."""
        node = self._node(name)
        if node is None:
            return
        items = node.value if isinstance(node.value, list) else [node]
        words = [word for item in items for word in str(item.value).split()]
        unknown = [word for word in words if re.search(r"[$`]", word)]
        if unknown:
            self.faults.append(f"{node.place}: {unknown[0]} is known only when the script runs; give {name}=PREFIX")
            return
        weighted = len(words) % 2 == 0 and all(_WEIGHT.fullmatch(word) for word in words[::2])
        self._put(f"indexed.{paths}", node.place, words[1::2] if weighted else words)
        if weighted and len(words) > 2:
            self._put(f"indexed.{weights}", node.place, [float(word) for word in words[::2]])

    def _tokenizer(self) -> None:
        kind = self._text("tokenizer_type")
        place = self._place_of("tokenizer_type", "vocab_file", "tokenizer_model")
        if kind is None or kind == "GPT2BPETokenizer":
            self._take("vocab_file", "merge_file")
            if "vocab_file" not in self.flags or "merge_file" not in self.flags:
                self.faults.append(f"{place}: --vocab-file and --merge-file are missing; add them")
        elif kind == "HuggingFaceTokenizer" or kind in _SENTENCEPIECE:
            model = self._text("tokenizer_model")
            if model is None:
                if "tokenizer_model" not in self.flags:
                    self.faults.append(f"{place}: --tokenizer-model is missing; add it")
                return
            is_file = model.endswith((".json", ".model"))
            file = model if is_file or kind in _SENTENCEPIECE else str(CheckpointFolder(Path(model)).tokenizer)
            self._put("tokenizer.tokenizer_file", self.flags["tokenizer_model"].place, file)
        else:
            self.faults.append(
                f"{place}: {kind} is not supported; give tokenizer_type=HuggingFaceTokenizer and tokenizer_model=FOLDER"
            )


def _noded(value: Any, place: Place) -> Node:
    if isinstance(value, list):
        return Node([_noded(item, place) for item in value], place)
    return Node(value, place)
