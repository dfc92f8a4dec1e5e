"""Answers are those of transformers' generate on the same model, whatever the ranks; the loss is transformers' own."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpclm.core.exit_codes import ExitCode
from hpclm.core.fine_tune_spec import FineTuneStageSpec
from hpclm.core.spec import GenerationSpec
from hpclm.data.instructions.instruction_files import records
from hpclm.data.ranks.instruction_tokens import InstructionEncoder
from hpclm.engines.hf.ranks.hf_loading import load_tokenizer
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import Ranks, predictions, result, run
from tests.support.hf_models import loaded_model
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def evaluation(shop: Workshop, base: Path, *, ranks: int = 1, **changes: Any) -> FineTuneStageSpec:
    spec: FineTuneStageSpec = shop.spec(ranks=ranks)
    return replace(spec, task="evaluate", base=str(base), **changes)


def answers_of(model: Any, spec: FineTuneStageSpec, folder: Path, virtual: Tensor | None = None) -> list[str]:
    """Row by row, without padding."""
    model.eval()
    tokenizer = load_tokenizer(folder)
    encoder = InstructionEncoder(tokenizer, spec.data)
    found = []
    for row in records(spec.data.test, spec.data, learns=False):
        tokens = torch.tensor([encoder.prompt(row)[1]])
        if virtual is not None:
            found.append(
                tokenizer.decode(behind(model, virtual, tokens, tokenizer.eos_token_id), skip_special_tokens=True)
            )
            continue
        made = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12,
            min_new_tokens=6, do_sample=False,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        found.append(tokenizer.decode(made[0, tokens.size(1) :], skip_special_tokens=True))
    return found


@torch.no_grad()
def behind(model: Any, virtual: Tensor, tokens: Tensor, end: int) -> list[int]:
    """Greedy tokens behind virtual ones, without a cache."""
    states = torch.cat([virtual[None], model.get_input_embeddings()(tokens)], dim=1)
    found: list[int] = []
    while len(found) < 12:
        logits = model(inputs_embeds=states).logits[0, -1]
        if len(found) < 6:
            logits[end] = -torch.inf
        found.append(int(logits.argmax()))
        if found[-1] == end:
            break
        states = torch.cat([states, model.get_input_embeddings()(torch.tensor([[found[-1]]]))], dim=1)
    return found


@pytest.mark.parametrize(("method", "ranks"), [("full", 1), ("full", 2), ("lora", 2), ("p-tuning", 2)])
def test_answers_are_transformers_own(shop: Workshop, method: str, ranks: int) -> None:
    from peft import PeftModel

    from hpclm.engines.hf.ranks.exporting import export

    tuned = shop.run(method=method, lr=1e-3 if method == "full" else 1e-2, steps=30)
    longer = GenerationSpec(max_new_tokens=12, min_new_tokens=6, batch_size=4)
    spec = evaluation(shop, tuned.checkpoints, ranks=ranks, generation=longer)
    paths = run(spec)
    folder = Path(result(paths)["base"])
    if method == "full":
        out = shop.folder / f"exported-{shop.count}"
        export(folder, out, "fp32")
        model = loaded_model(out)
    else:
        model = PeftModel.from_pretrained(loaded_model(shop.model("llama")), str(folder))
    if method == "p-tuning":
        # PEFT's own generate places what follows the first token wrongly behind virtual tokens
        wanted = answers_of(model.base_model, spec, folder, model.eval().get_prompt(1)[0].detach())
    else:
        wanted = answers_of(model, spec, folder)
    assert predictions(paths) == wanted
    assert all(wanted)
    assert set(result(paths)["scores"]) == {"instructions"}


def test_the_loss_is_transformers_own(shop: Workshop) -> None:
    base = shop.model("llama")
    spec = evaluation(shop, base, ranks=2)
    found = result(run(spec))
    model = loaded_model(base)
    model.eval()
    encoder = InstructionEncoder(load_tokenizer(base), spec.data)
    total = count = 0.0
    with torch.no_grad():
        for row in encoder.rows(records(spec.data.test, spec.data, learns=True)):
            labels = [token if learned else -100 for token, learned in zip(row.tokens, row.learned, strict=True)]
            number = sum(row.learned[1:])
            total += float(model(input_ids=torch.tensor([row.tokens]), labels=torch.tensor([labels])).loss) * number
            count += number
    assert found["loss"] == pytest.approx(total / count, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_stopped_evaluation_answers_no_row_twice(shop: Workshop) -> None:
    one_by_one = GenerationSpec(max_new_tokens=100, min_new_tokens=100, batch_size=1)
    spec = evaluation(shop, shop.model("llama"), generation=one_by_one)
    ranks = Ranks(spec)
    file = ranks.paths.prediction(0)
    wait_until("an answer", lambda: file.exists() and file.read_text().count("\n") >= 2, pause_s=0.01)
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert ranks.wait() == [ExitCode.STOPPED]
    before = file.read_text()
    assert 2 <= before.count("\n") < 9
    run(spec, attempt=2)
    assert file.read_text().startswith(before)
    assert len(predictions(ranks.paths)) == 9


def test_answers_end_at_the_recipes_strings(shop: Workshop) -> None:
    plain = predictions(run(evaluation(shop, shop.model("llama"))))
    letter = next(text for text in plain if len(text) > 4)[2]
    ends = GenerationSpec(max_new_tokens=12, batch_size=4, end_strings=[letter])
    cut = predictions(run(evaluation(shop, shop.model("llama"), generation=ends)))
    assert cut == [text.partition(letter)[0] for text in plain]


def test_another_runs_checkpoints_are_a_model(shop: Workshop, tmp_path: Path) -> None:
    """Planned and asked: a whole model, an adapter, and PEFT's adapter without anything beside it."""
    from hpclm.planning import make_plan
    from hpclm.recipe import load

    text = (
        "version: 1\nname: asked\ntask: evaluate\nengine: hf\nmodel: {{checkpoint: {model}}}\n"
        "resources: {{device: cpu}}\ninstructions: {{test: [{test}], template: stanford, max_seq_length: 128}}\n"
    )
    tuned = shop.run(method="lora", lr=1e-2)
    alone = tmp_path / "adapter"
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (alone / name).write_bytes((tuned.checkpoint(10) / name).read_bytes())
    found = []
    for number, model in enumerate((shop.run().checkpoints, tuned.checkpoint(10), alone)):
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(text.format(model=model, test=shop.rows["test"]))
        plan = make_plan(load(recipe))
        assert plan.errors == ()
        spec = plan.stages[0].spec
        assert isinstance(spec, FineTuneStageSpec)
        if number:
            assert str(shop.model("llama")) in spec.needs.inputs
        paths = run(replace(spec, run="test", stage_dir=str(tmp_path / f"asked-{number}")))
        found.append((predictions(paths), result(paths)["loss"]))
    assert found[1] == found[2] != found[0]
    recipe.write_text(text.replace("evaluate\nengine: hf", "fine-tune").format(model=alone, test=shop.rows["test"]))
    errors = [str(one) for one in make_plan(load(recipe)).errors]
    assert any("is an adapter; join it with its model first: hpclm model merge" in one for one in errors)
