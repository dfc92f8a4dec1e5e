"""The whole road of fine-tuning on this machine, as the README has it: p-tuning, every weight and LoRA on one base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fine_tuning_road import RECIPE, exact_match, generated, prepare, result, the_run
from tests.support.processes import hpclm

pytestmark = pytest.mark.slow

TUNED = ("ptune", "full", "lora")
# It took two and a half on two cores that others used too, six and a half at a load of eight.
MINUTES = 20


def test_from_the_library_to_a_merged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, monkeypatch)
    hpclm("submit", RECIPE, "--wait", timeout=60 * MINUTES)
    run = the_run()
    loss = {name: result(run, name)["loss"] for name in ("alone", *(f"{one}-answers" for one in TUNED))}
    exact = {name: exact_match(run, name) for name in loss}
    # the base has never seen the prompt; with seeds 1234, 2 and 3: 0.15 to 0.27 by p-tuning, 0.58 to 0.60 by the others
    assert exact["alone"] <= 0.05
    assert exact["ptune-answers"] >= exact["alone"] + 0.04
    for name in ("full-answers", "lora-answers"):
        assert exact[name] >= 0.35, exact
        assert exact[name] > exact["ptune-answers"], exact
        assert loss[name] < loss["ptune-answers"] < loss["alone"] - 1, loss
    assert result(run, "full")["sharding"] == "fsdp"
    trained = {name: result(run, name)["trained_parameters"] for name in TUNED}
    assert trained["lora"] < trained["ptune"] < trained["full"]

    hpclm("collect", "--pred-file", "test-results.txt")
    predictions = run / "results" / "predictions.jsonl"
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    scored = hpclm(
        *("evaluate", "score", predictions, "tiny-llama/test.jsonl", "--json"),
        *("--metric", "exact_match", "--metric", "rouge_l", "--metric", "bleu"),
    )
    scores = json.loads(scored)["scores"]["instructions"]
    assert scores["exact_match"] == pytest.approx(exact["lora-answers"])
    assert scores["rouge_l"] >= scores["exact_match"]

    merged = Path("merged")
    words = ("merge", run / "stages" / "lora" / "checkpoints", merged, "--dtype", "fp32", "--json")
    made = json.loads(hpclm("model", *words))
    assert made["difference"] < 1e-3
    assert generated(merged, predictions, 40) == [row["prediction"] for row in rows[:40]]
