"""Answer the test rows with a model and its trained prompts, or with the model alone, and score the answers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpclm.core import heartbeat
from hpclm.core.errors import DataError
from hpclm.core.files import read_lines
from hpclm.core.logging import log
from hpclm.core.spec import GenerationSpec, StageSpec
from hpclm.data.answered_rows import Writer, answered, key_of
from hpclm.data.examples import PromptDataset, rows_to_answer
from hpclm.data.prediction_rows import AT_LIMIT, TOKENS
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
    made = _generate(context, dataset, answerer, _key(spec, len(dataset), source))
    seconds = time.time() - began
    predicted = read_predictions(context, dataset)
    return {
        "examples": len(dataset),
        "examples_truncated": dataset.truncated,
        "left_out": dataset.left_out,
        "scores": scores(predicted),
        "answers_at_limit": sum(row[AT_LIMIT] for row in predicted),
        "generated_tokens": sum(row[TOKENS] for row in predicted),
        "generated_tokens_per_s": made / seconds,
        "seconds": seconds,
        "prompts": None if source is None else str(source),
        "base": str(base_checkpoint(spec)),
    }


def _key(spec: StageSpec, examples: int, prompts: Path | None) -> str:
    """What the predictions depend on."""
    assert spec.data is not None
    own = spec.tokenizer
    files = (*spec.data.test, own.vocab_file, own.merges_file, own.tokenizer_file)
    return key_of(spec, files, examples, (base_checkpoint(spec), prompts))


def _sampling(spec: StageSpec) -> GenerationSpec:
    """How tokens are chosen. NeMo's evaluation penalises what its generator tracks, which from r1.18 on is nothing
    (text_generation_utils.py, sample_sequence_batch: only with compute_logprob)."""
    assert spec.generation is not None
    assert spec.data is not None
    return replace(spec.generation, repetition_penalty=1.0) if spec.data.as_nemo else spec.generation


def _generate(context: StageContext, dataset: PromptDataset, answerer: Answerer, key: str) -> int:
    """Answer the rows that have no answer yet and write predictions as they come.

    Returns the number of tokens generated, over all replicas. Raises StoppedError on all ranks together when one was
    asked to stop.
    """
    groups, tokens = context.groups, 0
    done = _answered(context, key, dataset.examples)
    answers = answerer.stream([example for example in dataset.examples if example.index not in done])
    count, going = len(done), True
    with Writer(context.paths.prediction(groups.data_rank), groups.is_last_stage and groups.tensor_rank == 0) as writer:
        while going:
            made = next(answers, None)
            rows = [_row(example, answer) for example, answer in made or ()]
            writer.add(rows)
            tokens += sum(row[TOKENS] for row in rows)
            stops, going, new = _agree(context, made is not None, len(rows) if writer.active else 0)
            count += new
            context.progress.update(phase="generating", step=count, total_steps=len(dataset))
            if stops and count < len(dataset):
                raise StoppedError(f"stop requested; {count} of {len(dataset)} rows are answered")
    counts = [0] * groups.world_size
    dist.all_gather_object(counts, tokens if writer.active else 0)
    return sum(counts)


def _answered(context: StageContext, key: str, examples: list[Example]) -> set[int]:
    """The rows that an earlier job of this evaluation has answered, the same on every rank."""
    found: list[set[int]] = [set()]

    def look() -> None:
        found[0] = answered(context.paths, key, [example.index for example in examples])

    context.on_first_rank(look)
    dist.broadcast_object_list(found, src=0)
    if context.groups.rank == 0 and found[0]:
        log(f"{len(found[0])} rows are answered already")
    return found[0]


def _agree(context: StageContext, goes_on: bool, rows: int) -> tuple[bool, bool, int]:
    """Over all ranks: whether one was asked to stop, whether one goes on, and how many rows were answered."""
    words = [float(context.stop.requested), float(goes_on), float(rows)]
    sums = torch.tensor(words, device=context.groups.device)
    dist.all_reduce(sums)
    with heartbeat.waiting():
        stops, going, new = sums.tolist()
    return stops > 0, going > 0, int(new)


def _row(example: Example, answer: Answer) -> dict[str, Any]:
    return {
        "index": example.index,
        "taskname": example.taskname,
        "prompt": example.prompt,
        "prediction": answer.text,
        "answer": example.answer,
        TOKENS: answer.tokens,
        AT_LIMIT: answer.at_limit,
    }


def read_predictions(context: StageContext, dataset: PromptDataset) -> list[dict[str, Any]]:
    """All replicas' predictions in the order of the test rows, each once. Raises DataError where one is missing."""
    own = {context.paths.prediction(rank) for rank in range(context.groups.data_size)}
    files = sorted(own | set(context.paths.predictions.glob("rank-*.jsonl")))
    rows = {row["index"]: row for file in files for row in read_lines(file) if type(row.get("index")) is int}
    wanted = sorted(example.index for example in dataset.examples)
    missing = [index for index in wanted if index not in rows]
    if missing:
        raise DataError(
            f"{context.paths.predictions}: {len(missing)} of {len(wanted)} predictions are missing, the first of row "
            f"{missing[0] + 1}; remove the folder and resume the run to answer all rows again"
        )
    return [rows[index] for index in wanted]
