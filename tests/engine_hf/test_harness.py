"""lm-evaluation-harness in an evaluate stage: the scores that its own command gives, on any number of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.core.fine_tune_spec import HarnessSpec, InstructionData
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.core.spec import GenerationSpec
from tests.engine_hf.conftest import Workshop
from tests.support.engine_harness import Ranks, result, run
from tests.support.processes import environment

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def task(folder: Path) -> Path:
    """A folder with a task of one's own, its questions in a file."""
    folder.mkdir()
    rows = [{"question": f"for name in path {number} {number * 7 % 5}", "answer": number % 2} for number in range(13)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "choice.yaml").write_text(
        f"task: choice\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {folder}/questions.jsonl}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: [list, mode]\ndoc_to_target: answer\n"
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return folder


def test_scores_are_the_harness_own(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    own = str(task(tmp_path / "own"))
    harness = HarnessSpec(["choice"], own, batch_size=4)
    spec = replace(shop.spec(task="evaluate"), data=InstructionData(template="stanford"), harness=harness)
    alone = result(run(spec))["scores"]["choice"]
    spread = result(run(replace(shop.spec(task="evaluate", ranks=2), data=spec.data, harness=harness)))
    assert spread["scores"]["choice"] == alone
    assert spread["examples"] == 0  # so that collect and compare know that there are no answers
    model = shop.model("llama")
    script = (
        "import json, sys\nfrom lm_eval import simple_evaluate\nfrom lm_eval.tasks import TaskManager\n"
        "found = simple_evaluate('hf', model_args={'pretrained': sys.argv[1], 'dtype': 'float32'}, device='cpu',\n"
        "    tasks=['choice'], task_manager=TaskManager(include_path=sys.argv[2]), batch_size=4, log_samples=False)\n"
        "print(json.dumps(found['results']['choice']['acc,none']))\n"
    )
    words = [sys.executable, "-W", "ignore", "-c", script, str(model), own]
    theirs = subprocess.run(words, env=environment(HF_HUB_OFFLINE="1"), capture_output=True, text=True, check=False)
    assert theirs.returncode == 0, theirs.stderr[-2000:]
    assert alone["acc"] == pytest.approx(float(theirs.stdout.strip().splitlines()[-1]), abs=1e-9)
    assert 0 < alone["acc"] < 1


def test_a_task_that_was_asked_is_not_asked_again(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that failed at its second task goes on there, with the scores of the first, one of which is no number."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    own = task(tmp_path / "own")
    turned = (own / "choice.yaml").read_text().replace("task: choice", "task: second")
    turned = turned.replace("doc_to_target: answer", "doc_to_target: '{{1 - answer}}'")
    (own / "second.yaml").write_text(turned.replace("questions.jsonl", "../later.jsonl"))
    harness = HarnessSpec(["choice", "second", "choice"], str(own), batch_size=4)
    spec = replace(shop.spec(task="evaluate", ranks=2), data=InstructionData(template="stanford"), harness=harness)
    first = Ranks(spec)
    assert set(first.wait()) != {0}
    assert "harness: second" in first.log()
    (tmp_path / "later.jsonl").write_text((own / "questions.jsonl").read_text())
    written = first.paths.harness_scores
    kept = read_sealed(written) or {}
    write_sealed(written, kept | {"scores": {"choice": {"choice": kept["scores"]["choice"]["choice"] | {"mcc": None}}}})
    again = Ranks(spec, attempt=2)
    assert again.wait() == [0, 0], again.log()[-2000:]
    assert "the harness is through with choice already" in again.log()
    scores = result(again.paths)["scores"]
    assert scores["choice"]["mcc"] is None
    assert scores["second"]["acc"] == pytest.approx(1 - scores["choice"]["acc"])


def test_answers_and_a_task_that_is_not_there(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    both = shop.spec(task="evaluate", harness=HarnessSpec(["choice"], str(task(tmp_path / "own")), limit=3))
    found = result(run(replace(both, generation=GenerationSpec(max_new_tokens=4, batch_size=4))))
    assert found["examples"] == 9
    assert {"instructions", "choice"} <= set(found["scores"])
    wrong = replace(shop.spec(task="evaluate"), data=InstructionData(), harness=HarnessSpec(tasks=["no_such_task"]))
    with pytest.raises(AssertionError, match="harness: no_such_task"):
        run(wrong)


def test_the_plan_knows_what_can_be_asked(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(harness: object, method: str = "lora") -> str:
        stages = [
            {"name": "tuned", "task": "fine-tune", "fine_tune": {"method": method},
             "instructions": {"train": [str(shop.rows["train"])], "template": "stanford", "max_seq_length": 128},
             "trainer": {"max_steps": 3, "precision": "fp32"}, "optim": {"lr": 1e-3},
             "batch": {"global": 4, "micro": 2}},
            {"name": "asked", "task": "evaluate", "engine": "hf", "base": "tuned", "harness": harness},
        ]  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(json.dumps({
            "version": 1, "name": "two", "model": {"checkpoint": str(shop.model("llama"))},
            "resources": {"nodes": 1, "devices_per_node": 1, "device": "cpu"}, "stages": stages}))  # fmt: skip
        cli.run(["plan", str(tmp_path / "recipe.yaml")])
        return capsys.readouterr().err

    assert "error" not in said({"tasks": ["arc_easy"], "limit": 5})
    assert "tasks" in said({"limit": 5})
    assert "none: is no folder" in said({"tasks": ["mine"], "include_path": "none"})
    assert "cannot ask a model with virtual tokens" in said({"tasks": ["arc_easy"]}, "p-tuning")
