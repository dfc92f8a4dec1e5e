"""Answer the test rows with a model and its trained prompts, or with the model alone, and score the answers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hpclm.core.files import read_lines, write_text
from hpclm.core.logging import log
from hpclm.core.spec import GenerationSpec, StageSpec
from hpclm.data.examples import PromptDataset, rows_to_answer
from hpclm.data.templates import Example
from hpclm.data.tokenizers import load_tokenizer
from hpclm.engines.megatron.ranks.answering import Answer, Answerer
from hpclm.engines.megatron.ranks.language_model import LanguageModel
from hpclm.engines.megatron.ranks.rank_context import StageContext
from hpclm.engines.megatron.ranks.stage_models import (
    base_checkpoint,
    config_for,
    load_base,
    load_prompts,
    templates_for,
)
from hpclm.metrics import scores
from hpclm.worker.report import StoppedError


def run(context: StageContext) -> dict[str, object]:
    """Generate an answer for every test row; returns the stage's result with scores per task."""
    spec, groups = context.spec, context.groups
    assert spec.generation is not None
    context.progress.update(phase="data")
    tokenizer = load_tokenizer(spec.tokenizer, base_checkpoint(spec))
    tokenizer.check_fits(spec.model.padded_vocab_size)
    config = config_for(context, variable_lengths=True, generates=True)
    gpt = load_base(context, config)
    prompts, templates, source = None, spec.templates, None
    if spec.prompts is not None:
        trained = load_prompts(context, config)
        prompts, source = trained.module, trained.checkpoint
        templates = templates_for(spec.templates, trained)
    dataset = rows_to_answer(spec, templates, tokenizer)
    if groups.rank == 0 and dataset.left_out:
        log(f"{dataset.skipped} test rows do not fit and are left out, as in NeMo (data.semantics: nemo)")
    if groups.rank == 0 and dataset.truncated:
        log(f"{dataset.truncated} of {len(dataset)} test prompts are truncated to leave room for their answers")
    answerer = Answerer(groups, LanguageModel(config, gpt, prompts, frozen=True), tokenizer, _sampling(spec))
    began = time.time()
    made, at_limit = _generate(context, dataset, answerer)
    seconds = time.time() - began
    return {
        "examples": len(dataset),
        "examples_truncated": dataset.truncated,
        "left_out": dataset.left_out,
        "scores": scores(read_predictions(context)),
        "answers_at_limit": at_limit,
        "generated_tokens": made,
        "generated_tokens_per_s": made / seconds,
        "seconds": seconds,
        "prompts": None if source is None else str(source),
        "base": str(base_checkpoint(spec)),
    }


def _sampling(spec: StageSpec) -> GenerationSpec:
    """How tokens are chosen. NeMo's evaluation penalises what its generator tracks, which from r1.18 on is nothing
    (text_generation_utils.py, sample_sequence_batch: only with compute_logprob)."""
    assert spec.generation is not None
    assert spec.data is not None
    return replace(spec.generation, repetition_penalty=1.0) if spec.data.as_nemo else spec.generation


def _generate(context: StageContext, dataset: PromptDataset, answerer: Answerer) -> tuple[int, int]:
    """Answer this replica's share of the rows and write the predictions.

    Returns the number of generated tokens and of answers at the length limit, over all replicas.
    """
    groups, done = context.groups, 0
    lines, tokens, at_limit = [], 0, 0
    for batch in answerer.batches(dataset.examples):
        for example, answer in batch:
            lines.append(_line(example, answer))
            tokens += answer.tokens
            at_limit += answer.at_limit
        done = min(len(dataset), done + answerer.spec.batch_size * groups.data_size)
        context.progress.update(phase="generating", step=done, total_steps=len(dataset))
        if context.stop.requested:
            raise StoppedError("stop requested while generating; the evaluation starts over")
    writes = groups.is_last_stage and groups.tensor_rank == 0
    if writes:
        write_text(context.paths.prediction(groups.data_rank), "".join(lines))
    counts = [(0, 0)] * groups.world_size
    dist.all_gather_object(counts, (tokens, at_limit) if writes else (0, 0))
    return sum(made for made, _ in counts), sum(limited for _, limited in counts)


def _line(example: Example, answer: Answer) -> str:
    row = {
        "index": example.index,
        "taskname": example.taskname,
        "prompt": example.prompt,
        "prediction": answer.text,
        "answer": example.answer,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_predictions(context: StageContext) -> list[dict[str, Any]]:
    """All replicas' predictions in the order of the test rows."""
    files: list[Path] = [context.paths.prediction(rank) for rank in range(context.groups.data_size)]
    return sorted((row for file in files for row in read_lines(file)), key=lambda row: row["index"])
