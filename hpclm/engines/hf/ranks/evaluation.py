"""Answers to test rows by a model or by what a stage has tuned, and the loss of the right answers."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from hpclm.core import heartbeat
from hpclm.core.files import read_object
from hpclm.core.logging import log
from hpclm.core.ranks.seeds import named_seed
from hpclm.core.spec import GenerationSpec
from hpclm.data.answered_rows import key_of
from hpclm.data.instructions.instruction_files import records
from hpclm.data.instructions.instruction_records import Record
from hpclm.data.prediction_rows import AT_LIMIT, TOKENS
from hpclm.data.ranks.instruction_tokens import InstructionEncoder
from hpclm.engines.hf.ranks import adapters
from hpclm.engines.hf.ranks.document_batches import document_batch
from hpclm.engines.hf.ranks.hf_groups import DataGroup
from hpclm.engines.hf.ranks.hf_stage import HfStage
from hpclm.engines.hf.ranks.loss_model import LossModel
from hpclm.engines.hf.ranks.tuned_adapters import base_of
from hpclm.engines.hf.ranks.tuned_models import Tuned, load
from hpclm.formats.huggingface.architectures import GENERATION_CONFIG
from hpclm.metrics import scores
from hpclm.training.ranks.answering_loop import AnsweringLoop, Replica

_TASK = "instructions"


def run(stage: HfStage) -> dict[str, Any]:
    """Returns the stage's result with scores."""
    spec, group = stage.spec, stage.group
    stage.progress.update(phase="loading the model")
    tuned = load(spec.base, spec.huggingface, spec.trainer.precision, group.device, spec.data.chat_template)
    found: dict[str, Any] = {"examples": 0, "scores": {}, "base": str(tuned.folder)}
    if spec.data.test:
        found = _answered(stage, tuned)
    if spec.harness is not None:
        from hpclm.engines.hf.ranks.harness import benchmark

        found["scores"] = {**found["scores"], **benchmark(stage, spec.harness, tuned)}
    return found


def _answered(stage: HfStage, tuned: Tuned) -> dict[str, Any]:
    spec, group = stage.spec, stage.group
    assert spec.generation is not None
    encoder = InstructionEncoder(tuned.tokenizer, spec.data)
    rows = list(records(spec.data.test, spec.data, learns=False))
    prompts = Prompts(encoder, rows, spec.data.max_seq_length)
    if group.rank == 0 and prompts.truncated:
        log(f"{prompts.truncated} of {len(rows)} prompts lose their beginning")
    loss = _loss(stage, tuned, encoder, rows)
    answerer = Answers(tuned, prompts, spec.generation, group)
    loop = AnsweringLoop(
        stage.paths, Replica(group.rank, group.world_size, True), group.device, stage.progress, stage.stop
    )
    began, wanted = time.time(), list(range(len(rows)))
    # drawn answers depend on which rows are asked together
    drawn = {} if spec.generation.greedy else {"ranks": group.world_size}
    files = (*spec.data.test, spec.data.chat_template)
    key = f"{key_of(spec, files, len(rows), (tuned.folder, base_of(tuned.folder)))}{drawn or ''}"
    made = loop.run(wanted, key, answerer)
    seconds = time.time() - began
    predicted = loop.predictions(wanted)
    return {
        "examples": len(rows),
        "examples_truncated": prompts.truncated,
        "left_out": [],
        "scores": scores(predicted, spec.data.metrics),
        **loss,
        "answers_at_limit": sum(row[AT_LIMIT] for row in predicted),
        "generated_tokens": sum(row[TOKENS] for row in predicted),
        "generated_tokens_per_s": made / seconds,
        "seconds": seconds,
        "prompts": None,
        "base": str(tuned.folder),
    }


class Prompts:
    """Rows as prompts; those of more than `limit` tokens lose their beginning."""

    def __init__(self, encoder: InstructionEncoder, rows: list[Record], limit: int) -> None:
        self.rows, self.truncated, self.ends = rows, 0, encoder.ends()
        self.texts: list[str] = []
        self.tokens: list[list[int]] = []
        for row in rows:
            text, tokens = encoder.prompt(row)
            self.truncated += len(tokens) > limit
            self.texts.append(text)
            self.tokens.append(tokens[-limit:])


class Answers:
    """This rank's answers, a batch at a time, by transformers' own generate."""

    def __init__(self, tuned: Tuned, prompts: Prompts, spec: GenerationSpec, group: DataGroup) -> None:
        self.tuned, self.prompts, self.spec, self.group = tuned, prompts, spec, group
        self.ends = list(dict.fromkeys([*prompts.ends, *end_tokens(tuned)]))
        self.settings = self._settings()
        # keys and values of earlier tokens are kept, so the attention is no longer one over whole rows
        tuned.base.set_attn_implementation("sdpa")
        tuned.base.config.use_cache = True

    def _settings(self) -> dict[str, Any]:
        spec = self.spec
        found: dict[str, Any] = {
            "max_new_tokens": spec.max_new_tokens,
            "do_sample": not spec.greedy,
            "repetition_penalty": spec.repetition_penalty,
            "eos_token_id": self.ends,
            "pad_token_id": self.ends[0],
        }
        if spec.min_new_tokens:
            found["min_new_tokens"] = spec.min_new_tokens
        if not spec.greedy:
            found |= {"temperature": spec.temperature, "top_k": spec.top_k, "top_p": spec.top_p}
        if spec.end_strings:
            found |= {"stop_strings": list(spec.end_strings), "tokenizer": self.tuned.tokenizer}
        return found

    def __call__(self, left: list[int]) -> Iterator[list[dict[str, Any]]]:
        group, size = self.group, self.spec.batch_size
        # rows of similar length together: less padding
        ordered = sorted(left, key=lambda index: len(self.prompts.tokens[index]))[group.rank :: group.world_size]
        stream = iter(ordered)
        while some := list(itertools.islice(stream, size)):
            heartbeat.beat()
            yield self._batch(some)

    @torch.inference_mode()
    def _batch(self, indices: list[int]) -> list[dict[str, Any]]:
        device, virtual = self.group.device, self.tuned.virtual
        prompts = [self.prompts.tokens[index] for index in indices]
        if virtual is not None:
            # their places have a token of the prompt, whose embedding is replaced
            prompts = [one[:1] * len(virtual) + one for one in prompts]
        width = max(map(len, prompts))
        tokens = torch.tensor([[self.ends[0]] * (width - len(one)) + one for one in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
        torch.manual_seed(named_seed(self.spec.seed, f"row {indices[0]}") % (1 << 31))
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, **self.settings}
        model = self.tuned.model
        if virtual is not None:
            # not PEFT's own generate, which has the padding between virtual tokens and prompt
            words = self.tuned.base.get_input_embeddings()(tokens)
            for row, one in enumerate(prompts):
                words[row, width - len(one) : width - len(one) + len(virtual)] = virtual.to(words.dtype)
            given["inputs_embeds"], model = words, self.tuned.base
        made = model.generate(**given)
        return [self._row(index, row[width:].tolist()) for index, row in zip(indices, made, strict=True)]

    def _row(self, index: int, tokens: list[int]) -> dict[str, Any]:
        length = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        text = self.tuned.tokenizer.decode(tokens[:length], skip_special_tokens=True)
        for end in self.spec.end_strings:
            text = text.partition(end)[0]
        return {
            "index": index,
            "taskname": _TASK,
            "prompt": self.prompts.texts[index],
            "prediction": text,
            "answer": self.prompts.rows[index].answer,
            TOKENS: length,
            AT_LIMIT: length >= self.spec.max_new_tokens,
        }


def end_tokens(tuned: Tuned) -> list[int]:
    """The tokens that end an answer: the model's, which may be several, and the tokenizer's."""
    told = (read_object(tuned.folder / GENERATION_CONFIG) or {}).get("eos_token_id")
    named = tuned.base.generation_config.eos_token_id
    found = [one for ids in (told, named) for one in (ids if isinstance(ids, list) else [ids])]
    return list(dict.fromkeys(one for one in (tuned.tokenizer.eos_token_id, *found) if isinstance(one, int)))


@torch.inference_mode()
def _loss(stage: HfStage, tuned: Tuned, encoder: InstructionEncoder, rows: list[Record]) -> dict[str, float | None]:
    """Mean loss of the right answers' tokens, over all rows that have one, and its exponential."""
    group, spec = stage.group, stage.spec
    model = LossModel(tuned.base, tuned.base, None if tuned.virtual is None else adapters.FixedTokens(tuned.virtual))
    model.check_rows_apart(tuned.base.get_input_embeddings().num_embeddings, group.device)
    known = [row for row in rows if row.answer is not None]
    sums = torch.zeros(2, dtype=torch.float64, device=group.device)
    virtual = 0 if tuned.virtual is None else len(tuned.virtual)
    for row in encoder.rows(known[group.rank :: group.world_size]):
        heartbeat.beat()
        limit = spec.data.max_seq_length
        tokens = np.asarray(row.tokens[:limit], dtype=np.int32)
        batch = document_batch([(tokens, np.asarray(row.learned[:limit], dtype=np.bool_))], virtual).to(group.device)
        sums += torch.stack([model(batch).double(), sums.new_tensor(len(batch.labels))])
    dist.all_reduce(sums)
    with heartbeat.waiting():
        total, count = sums.tolist()
    mean = total / count if count else None
    return {"loss": mean, "perplexity": None if mean is None else math.exp(min(mean, 700.0))}
