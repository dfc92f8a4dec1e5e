"""What a release of Megatron-LM says of each recipe of `random_recipes`: its own parser, validate_args, configuration,
micro-batches, schedule, groups and model, on the first and the last rank, with no device.

    python -m tests.support.megatron_verdicts CHECKOUT [RECIPES]     # prints lines of tests/plan/megatron_verdicts.txt

CHECKOUT is a checkout of Megatron-LM whose folder is named by the release, as core_v0.16.1.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from tests.support.random_recipes import Section, draw

LINE = 100  # verdicts
# Need triton when they are imported, and no flag of a recipe.
TRITON = (
    "megatron.core.transformer.custom_layers.batch_invariant_kernels",
    "megatron.core.transformer.moe.ops.paged_stash",
)
_MODEL = {
    "num_layers": "num-layers",
    "hidden_size": "hidden-size",
    "num_attention_heads": "num-attention-heads",
    "max_position_embeddings": "max-position-embeddings",
    "kv_channels": "kv-channels",
    "ffn_hidden_size": "ffn-hidden-size",
    "num_moe_experts": "num-experts",
}
_PARALLEL = {
    "tensor": "tensor-model-parallel-size",
    "pipeline": "pipeline-model-parallel-size",
    "context": "context-parallel-size",
    "expert": "expert-model-parallel-size",
    "expert_tensor": "expert-tensor-parallel-size",
    "first_stage_layers": "decoder-first-pipeline-num-layers",
    "last_stage_layers": "decoder-last-pipeline-num-layers",
}
_SWITCHES = {
    "account_for_embedding": "account-for-embedding-in-pipeline-split",
    "account_for_loss": "account-for-loss-in-pipeline-split",
    "sequence": "sequence-parallel",
    "distributed_optimizer": "use-distributed-optimizer",
    "overlap": "overlap-grad-reduce",
}


def flags(recipe: Section) -> list[str]:
    """The recipe as a command line, made without hpclm."""
    words: list[str] = []
    for name, value in _flags(recipe):
        words += [f"--{name}", *([] if value is True else map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def _flags(recipe: Section) -> Iterator[tuple[str, Any]]:
    parallel, trainer, batch = recipe["parallel"], recipe["trainer"], recipe["batch"]
    yield from ((flag, parallel[key]) for key, flag in _PARALLEL.items() if key in parallel)
    yield from ((flag, True) for key, flag in _SWITCHES.items() if parallel.get(key))
    if parallel.get("virtual_pipeline", 1) > 1:
        yield "num-virtual-stages-per-pipeline-rank", parallel["virtual_pipeline"]
    if parallel.get("overlap") and parallel.get("distributed_optimizer"):
        yield "overlap-param-gather", True
    yield from _model_flags(recipe["model"])
    yield from (("seq-length", recipe["seq_length"]), ("micro-batch-size", batch["micro"]))
    yield "global-batch-size", batch["global"]
    if "rampup" in batch:
        yield "rampup-batch-size", [batch["rampup"][key] for key in ("start", "increment", "samples")]
    if trainer["precision"] != "fp32":
        yield trainer["precision"], True
    for key, value in trainer.get("recompute", {}).items():
        yield f"recompute-{key.replace('_', '-')}", value
    yield from _schedule_flags(recipe)
    yield from (("tokenizer-type", "NullTokenizer"), ("vocab-size", recipe["model"]["vocab_size"]))
    yield from (("save-interval", 50), ("data-path", "x"), ("split", "98,2,0"), ("distributed-backend", "nccl"))


def _model_flags(model: Section) -> Iterator[tuple[str, Any]]:
    yield from ((flag, model[key]) for key, flag in _MODEL.items() if key in model)
    if "num_moe_experts" in model:
        chosen = model.get("moe_router_topk", 2)
        yield from (("moe-router-topk", chosen), ("moe-token-dispatcher-type", "alltoall"))
        if chosen == 1:
            yield "moe-router-pre-softmax", True
    groups = model.get("num_query_groups", model["num_attention_heads"])
    if groups != model["num_attention_heads"]:
        yield from (("group-query-attention", True), ("num-query-groups", groups))
    if "position_embedding" in model:
        yield "position-embedding-type", model["position_embedding"]
    said = {
        "apply-layernorm-1p": model.get("normalization") == "layernorm1p",
        "swiglu": model.get("activation") == "swiglu",
        "squared-relu": model.get("activation") == "squared_relu",
        "no-bias-gelu-fusion": model.get("activation") in ("gelu_exact", "squared_relu"),
        "disable-bias-linear": model.get("add_bias_linear") is False,
        "add-qkv-bias": model.get("add_qkv_bias"),
        "qk-layernorm": model.get("qk_norm"),
        "untie-embeddings-and-output-weights": model.get("tie_embeddings") is False,
    }
    yield from ((flag, True) for flag, wanted in said.items() if wanted)
    if model.get("normalization") == "rmsnorm":
        yield "normalization", "RMSNorm"


def _schedule_flags(recipe: Section) -> Iterator[tuple[str, Any]]:
    trainer, optim = recipe["trainer"], recipe["optim"]
    key, unit = ("samples", "samples") if "train_samples" in trainer else ("steps", "iters")
    length = trainer["train_samples" if key == "samples" else "max_steps"]
    schedule = optim["schedule"]
    yield from ((f"train-{unit}", length), ("lr", optim["lr"]), ("min-lr", optim["min_lr"]))
    yield "lr-decay-style", {"wsd": "WSD"}.get(schedule["name"], schedule["name"])
    if "warmup_ratio" in schedule:
        yield "lr-warmup-fraction", schedule["warmup_ratio"]
    if f"warmup_{key}" in schedule:
        yield f"lr-warmup-{unit}", schedule[f"warmup_{key}"]
    if f"constant_{key}" in schedule:
        yield f"lr-decay-{unit}", length - schedule[f"constant_{key}"]
    if schedule["name"] == "wsd":
        yield from (("lr-wsd-decay-style", "exponential"), (f"lr-wsd-decay-{unit}", schedule[f"anneal_{key}"]))


class Oracle:
    """The modules of one checkout."""

    def __init__(self, checkout: Path) -> None:
        sys.path.insert(0, str(checkout))
        _without_devices()
        from megatron.core import num_microbatches_calculator, parallel_state
        from megatron.training import arguments, global_vars, training

        self.arguments, self.training, self.globals = arguments, training, global_vars
        self.state, self.batches = parallel_state, num_microbatches_calculator

    def verdict(self, recipe: Section) -> str:
        """One letter of `megatron_verdicts.txt`."""
        world = recipe["resources"]["nodes"] * recipe["resources"]["devices_per_node"]
        os.environ.update(WORLD_SIZE=str(world), RANK="0", LOCAL_RANK="0")
        sys.argv = ["pretrain_gpt.py", *flags(recipe)]
        try:
            args = self.arguments.validate_args(self.arguments.parse_args())
            args.apply_rope_fusion = args.gradient_accumulation_fusion = False  # Transformer Engine's and Apex's
            each = 128 * args.tensor_model_parallel_size
            args.padded_vocab_size = -(-args.vocab_size // each) * each
            self._micro_batches(args)
            for rank in sorted({0, world - 1}):
                self._rank(args, rank, world)
        except (Exception, SystemExit):
            return "x"
        try:
            self._schedule(args)
        except Exception:
            return "s"
        return "."

    def _micro_batches(self, args: Any) -> None:
        self.batches.destroy_num_microbatches_calculator()
        self.batches.init_num_microbatches_calculator(
            0, args.rampup_batch_size, args.global_batch_size, args.micro_batch_size, args.data_parallel_size, False
        )

    def _schedule(self, args: Any) -> None:
        self.globals._GLOBAL_ARGS = args
        self.training.get_args = lambda: args
        self.training.get_optimizer_param_scheduler(MagicMock(param_groups=[{"lr": 1.0, "weight_decay": 0.1}]))

    def _rank(self, args: Any, rank: int, world: int) -> None:
        import torch.distributed as dist
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            self.state.initialize_model_parallel(
                args.tensor_model_parallel_size,
                args.pipeline_model_parallel_size,
                args.virtual_pipeline_model_parallel_size,
                context_parallel_size=args.context_parallel_size,
                expert_model_parallel_size=args.expert_model_parallel_size,
                expert_tensor_parallel_size=args.expert_tensor_parallel_size,
                create_gloo_process_groups=False,
            )
            self._models(args)
        finally:
            self.state.destroy_model_parallel()
            dist.destroy_process_group()

    def _models(self, args: Any) -> None:
        import torch
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_layer_local_spec

        config = self.arguments.core_transformer_config_from_args(args)
        config.use_cpu_initialization, config.perform_initialization = True, False
        config.transformer_impl, config.context_parallel_size = "local", 1  # attention's, of Transformer Engine alone
        stage, chunks = self.state.get_pipeline_model_parallel_rank(), args.virtual_pipeline_model_parallel_size or 1
        last = stage == args.pipeline_model_parallel_size - 1
        for chunk in range(chunks):
            place = {"vp_stage": chunk} if "vp_stage" in inspect.signature(GPTModel.__init__).parameters else {}
            place = place if chunks > 1 else {}
            if args.num_experts:
                spec = get_gpt_decoder_block_spec(config, False, normalization=args.normalization, **place)
            else:
                spec = get_gpt_layer_local_spec(None, False, args.qk_layernorm, normalization=args.normalization)
            with torch.device("meta"):
                GPTModel(
                    config,
                    spec,
                    args.padded_vocab_size,
                    args.max_position_embeddings,
                    pre_process=stage == 0 and chunk == 0,
                    post_process=last and chunk == chunks - 1,
                    share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
                    position_embedding_type=args.position_embedding_type,
                    **place,
                )


def _without_devices() -> None:
    """An H100's facts, and its calls without effect."""
    import torch
    import torch._inductor.codecache  # looks at the real modules

    logging.disable(logging.WARNING)
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if not hasattr(typing, "override"):  # of Python 3.12
        typing.override = lambda method: method  # type: ignore[attr-defined]
    facts = MagicMock(major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)
    nothing: Callable[..., Any] = lambda *_, **__: None  # noqa: E731
    stands: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "get_device_capability": lambda *_: (9, 0),
            "get_device_properties": lambda *_: facts,
            "current_device": lambda: torch.device("cpu"),
            "device_count": lambda: 8,
            "Stream": nothing,
            "Event": nothing,
        },
        torch.Tensor: {"cuda": lambda tensor, *_, **__: tensor},
        torch: {"compile": lambda function=None, **_: function or (lambda one: one)},
    }
    for place, names in stands.items():
        for name, stand in names.items():
            setattr(place, name, stand)
    for module in TRITON:
        sys.modules[module] = MagicMock()
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    WrappedTorchNorm.__new__ = lambda _, config, hidden_size, eps=1e-5, **__: torch.nn.LayerNorm(hidden_size, eps=eps)


def main() -> None:
    checkout, count = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    oracle = Oracle(checkout)
    for first in range(0, count, LINE):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = "".join(oracle.verdict(draw(number)) for number in range(first, min(first + LINE, count)))
        print(f"{checkout.name} {first:4} {found}", flush=True)


if __name__ == "__main__":
    main()
