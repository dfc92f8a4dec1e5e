"""`hpclm generate`: continues prompts with a model on this machine, split over as many processes as are wanted."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpclm.core.errors import HpclmError
from hpclm.core.files import read_json, write_json
from hpclm.core.parallel_spec import ParallelSpec
from hpclm.core.spec import GenerationSpec, ModelSpec
from hpclm.core.vocabulary_size import padded_vocab_size
from hpclm.data.templates import Example
from hpclm.data.tokenizers import Tokenizer
from hpclm.formats.archive import Archive
from hpclm.formats.huggingface.architectures import is_huggingface
from hpclm.formats.huggingface.architectures import model_spec as huggingface_spec
from hpclm.formats.megatron.model_weights import is_megatron
from hpclm.formats.model_card import read_model_card
from hpclm.formats.nemo.gpt_weights import is_archive
from hpclm.formats.nemo.model_config import model_spec as archived_spec
from hpclm.formats.ranks.checkpoint_manager import resolve


@dataclass(frozen=True)
class Request:
    """What to generate, and how.

    Attributes:
        model: a checkpoint or a stage's checkpoints folder, a folder of transformers' or an archive.
        tensor, pipeline: the split; one process each.
        device: cpu, gpu, or auto: GPUs where there are enough.
    """

    model: str
    prompts: list[str]
    generation: GenerationSpec
    tensor: int
    pipeline: int
    device: str

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline


def generate(request: Request) -> list[dict[str, Any]]:
    """`prompt`, `text`, `tokens` and `at_limit` of each prompt. Raises CheckpointError, DataError or HpclmError."""
    model, tokenizer = _opened(request.model, request.tensor)
    _check(request, model, tokenizer)
    request = replace(request, device=_device(request))
    with tempfile.TemporaryDirectory(prefix="hpclm-generate-") as folder:
        out = Path(folder) / "answers.json"
        if request.world_size == 1:
            _rank(0, request, folder, str(out))
        else:
            _spawn(request, folder, str(out))
        found: list[dict[str, Any]] = read_json(out)
    return found


def _device(request: Request) -> str:
    """cpu or gpu; GPUs that are not used are hidden."""
    gpus = 0 if request.device == "cpu" else torch.cuda.device_count()
    if request.device == "gpu" and gpus < request.world_size:
        raise HpclmError(
            f"{request.world_size} GPUs are needed, and torch sees {gpus}; choose a smaller split, or --device cpu"
        )
    if gpus >= request.world_size:
        return "gpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return "cpu"


def _opened(path: str, tensor: int) -> tuple[ModelSpec, Tokenizer]:
    """The architecture, padded for the split, and the tokenizer."""
    if is_archive(path):
        with Archive(Path(path)) as archive:
            model = archived_spec(archive)
        tokenizer = Tokenizer.from_archive(Path(path))
    elif is_huggingface(path):
        model, tokenizer = huggingface_spec(Path(path)), Tokenizer.from_huggingface(Path(path))
    elif is_megatron(path):
        raise HpclmError(
            f"{path}: a checkpoint of Megatron-LM has no tokenizer; convert it first: hpclm model convert {path} OUT "
            "--to hpclm --tokenizer FILE"
        )
    else:
        folder = resolve(Path(path), prefer="latest")
        model = read_model_card(folder, "prompts alone cannot answer, give their model")
        tokenizer = Tokenizer.load(folder)
    return replace(model, padded_vocab_size=padded_vocab_size(model.vocab_size, tensor)), tokenizer


def _check(request: Request, model: ModelSpec, tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(model.padded_vocab_size)
    for name, value in (
        ("num_attention_heads", model.num_attention_heads),
        ("ffn_hidden_size", model.ffn_hidden_size),
        ("num_query_groups", model.num_query_groups),
    ):
        shared = name == "num_query_groups" and request.tensor % value == 0  # each rank has a whole group, or a copy
        if value % request.tensor and not shared:
            raise HpclmError(f"--tensor {request.tensor} does not divide {name} {value}; choose another")
    if model.num_layers % request.pipeline:
        raise HpclmError(f"--pipeline {request.pipeline} does not divide num_layers {model.num_layers}; choose another")
    limit = model.max_position_embeddings - request.generation.max_new_tokens
    for prompt in request.prompts:
        count = len(tokenizer.encode(prompt))
        if count > limit:
            raise HpclmError(
                f"the prompt {prompt[:40]!r} has {count} tokens, and with {request.generation.max_new_tokens} new ones "
                f"the model's {model.max_position_embeddings} positions are not enough; shorten it, or --max-new-tokens"
            )
        if not count and not request.generation.add_bos:
            raise HpclmError("a prompt is empty; write one, or begin with the BOS token (--add-bos)")


def _spawn(request: Request, folder: str, out: str) -> None:
    from torch.multiprocessing.spawn import ProcessException, start_processes

    os.environ["PYTHONWARNINGS"] = "ignore"  # each of them would say what megatron-core does without
    try:
        start_processes(_rank, (request, folder, out), nprocs=request.world_size)  # type: ignore[no-untyped-call]
    except ProcessException as error:
        lines = str(error).strip().splitlines()
        raise HpclmError(f"rank {error.error_index} failed: {lines[-1] if lines else 'killed'}") from error


def _rank(rank: int, request: Request, folder: str, out: str) -> None:
    """One process of the model; the first writes the answers."""
    gpu = request.device == "gpu"
    if gpu:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
    else:
        from hpclm.engines.megatron.ranks import cpu_standins

        cpu_standins.install()
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // request.world_size))
        device = torch.device("cpu")
    from hpclm.engines.megatron.ranks import groups as process_groups
    from hpclm.engines.megatron.ranks.answering import Answerer
    from hpclm.engines.megatron.ranks.gpt_model import build_gpt, transformer_config
    from hpclm.engines.megatron.ranks.language_model import LanguageModel
    from hpclm.engines.megatron.ranks.stage_models import load_weights

    model, tokenizer = _opened(request.model, request.tensor)
    parallel = ParallelSpec(request.tensor, request.pipeline, 1, request.world_size, 1, request.world_size)
    store = dist.HashStore() if request.world_size == 1 else dist.FileStore(f"{folder}/store", request.world_size)
    began = not dist.is_initialized()
    groups = process_groups.initialize(store, rank, parallel, device, request.generation.seed)
    still = replace(model, hidden_dropout=0.0, attention_dropout=0.0)
    config = transformer_config(still, parallel, "bf16" if gpu else "fp32", device, variable_lengths=True)
    gpt = build_gpt(still, config, groups)
    load_weights(gpt, model, request.model)
    answerer = Answerer(groups, LanguageModel(config, gpt, None, frozen=True), tokenizer, request.generation)
    begin = [tokenizer.bos_id] if request.generation.add_bos else []
    examples = [
        _example(number, prompt, [*begin, *tokenizer.encode(prompt)]) for number, prompt in enumerate(request.prompts)
    ]
    made = {one.index: answer for part in answerer.stream(examples) for one, answer in part}
    if rank == 0:
        rows = [
            {"prompt": prompt, "text": one.text, "tokens": one.tokens, "at_limit": one.at_limit}
            for prompt, one in ((prompt, made[number]) for number, prompt in enumerate(request.prompts))
        ]
        write_json(Path(out), rows)
    if began:
        dist.destroy_process_group()


def _example(index: int, prompt: str, tokens: list[int]) -> Example:
    return Example(
        tokens=tokens,
        virtual=[-1] * len(tokens),
        loss_mask=[0.0] * len(tokens),
        taskname="",
        task=0,
        index=index,
        prompt=prompt,
        answer=None,
    )
