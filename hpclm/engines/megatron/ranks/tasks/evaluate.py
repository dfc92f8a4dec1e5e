"""Answer the test rows with a model and its trained prompts, or with the model alone, and score the answers."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpclm.core.logging import log
from hpclm.core.spec import GenerationSpec, StageSpec
from hpclm.data.answered_rows import key_of
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
from hpclm.training.ranks.answering_loop import AnsweringLoop, Replica


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
    wanted = [example.index for example in dataset.examples]
    replica = Replica(groups.data_rank, groups.data_size, groups.is_last_stage and groups.tensor_rank == 0)
    loop = AnsweringLoop(context.paths, replica, groups.device, context.progress, context.stop)
    made = loop.run(wanted, _key(spec, len(dataset), source), functools.partial(_answers, answerer, dataset))
    seconds = time.time() - began
    predicted = loop.predictions(wanted)
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


def _answers(answerer: Answerer, dataset: PromptDataset, left: list[int]) -> Iterator[list[dict[str, Any]]]:
    """Of the rows that are left, this replica's."""
    by_index = {example.index: example for example in dataset.examples}
    for some in answerer.stream([by_index[index] for index in left]):
        yield [_row(example, answer) for example, answer in some]


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
