"""Answer the test rows with a model and its trained prompts, or with the model alone, and score the answers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hpclm.runs.files import read_lines, write_text
from hpclm.worker.context import StageContext
from hpclm.worker.data.prompts import PromptDataset, collate_left
from hpclm.worker.data.templates import Example
from hpclm.worker.engine.generation import Generator
from hpclm.worker.engine.language_model import LanguageModel
from hpclm.worker.models import base_checkpoint, config_for, load_base, load_prompts, templates_for
from hpclm.worker.report import StoppedError
from hpclm.worker.scoring import scores
from hpclm.worker.tokenizer import Tokenizer, load_tokenizer


def run(context: StageContext) -> dict[str, Any]:
    """Generate an answer for every test row; returns the stage's result with a score a task."""
    spec, groups = context.spec, context.groups
    assert spec.data is not None
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
    room = spec.model.max_position_embeddings - spec.generation.max_new_tokens
    dataset = PromptDataset(
        spec.data.test,
        templates,
        tokenizer,
        spec.data,
        training=False,
        with_virtual=spec.prompts is not None,
        reserve=max(0, spec.data.max_seq_length - room),
    )
    model = LanguageModel(config, gpt, prompts, frozen=True)
    generator = Generator(model, groups, spec.generation, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    began = time.time()
    made = _generate(context, dataset, generator, tokenizer)
    seconds = time.time() - began
    rows = read_predictions(context)
    return {
        "examples": len(dataset),
        "examples_truncated": dataset.truncated,
        "scores": scores(rows),
        "generated_tokens": made,
        "generated_tokens_per_s": made / seconds,
        "seconds": seconds,
        "prompts": None if source is None else str(source),
        "base": str(base_checkpoint(spec)),
    }


def _generate(context: StageContext, dataset: PromptDataset, generator: Generator, tokenizer: Tokenizer) -> int:
    """Answer this replica's share of the rows and write them down. Returns the tokens made by all replicas."""
    groups, size = context.groups, generator.spec.batch_size
    # rows of like length together: less padding, and batches that do not depend on the number of replicas
    order = sorted(range(len(dataset)), key=lambda place: len(dataset.examples[place].tokens))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    lines, tokens = [], 0
    for number, batch in enumerate(batches[groups.data_rank :: groups.data_size]):
        if context.stop.requested:
            raise StoppedError("told to stop while generating; an evaluation begins again")
        examples = [dataset.examples[place] for place in batch]
        inputs = {name: value.to(groups.device) for name, value in collate_left(examples, tokenizer.pad_id).items()}
        answers = generator(inputs, [example.index for example in examples])
        tokens += sum(map(len, answers))
        lines += [_line(example, tokenizer.decode(ids)) for example, ids in zip(examples, answers, strict=True)]
        done = min(len(dataset), (number + 1) * size * groups.data_size)
        context.progress.update(phase="generating", step=done, total_steps=len(dataset))
    writes = groups.is_last_stage and groups.tensor_rank == 0
    if writes:
        write_text(context.paths.prediction(groups.data_rank), "".join(lines))
    counts: list[Any] = [None] * groups.world_size
    dist.all_gather_object(counts, tokens if writes else 0)
    return sum(counts)


def _line(example: Example, prediction: str) -> str:
    row = {
        "index": example.index,
        "taskname": example.taskname,
        "prompt": example.prompt,
        "prediction": prediction,
        "answer": example.answer,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_predictions(context: StageContext) -> list[dict[str, Any]]:
    """All replicas' predictions in the order of the test rows."""
    files: list[Path] = [context.paths.prediction(rank) for rank in range(context.groups.data_size)]
    return sorted((row for file in files for row in read_lines(file)), key=lambda row: row["index"])
