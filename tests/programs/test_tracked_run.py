"""A run with trackers, from its recipe to what they show, and `hpclm track` for one without."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclm.cli import app as cli
from tests.support import wandb_files
from tests.support.processes import python
from tests.support.waiting import wait_until
from tests.support.wandb_server import wandb_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PROGRAM = {
    "argv": [sys.executable, "-c", "for n in range(1, 5): print(f'step {{n}} loss {{1 / n:.3f}}', flush=True)"],
    "progress": r"step (?P<step>\d+) loss (?P<loss>[\d.]+)",
}
LOSSES = [(1, 1.0), (2, 0.5), (3, 0.333), (4, 0.25)]


@pytest.fixture
def hpclm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG", "WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str, code: int = 0) -> str:
        ended = cli.run(list(arguments))
        out, err = capsys.readouterr()
        assert ended == code, out + err
        return out if code == 0 else out + err

    return command


def recipe(tracking: dict[str, Any]) -> None:
    resources = {"nodes": 1, "devices_per_node": 1, "device": "cpu", "time_limit_min": 5}
    stage = {"task": "program", "engine": "command", "program": PROGRAM}
    made = {"version": 1, "name": "p", **stage, "resources": resources, "tracking": tracking}
    Path("recipe.yaml").write_text(yaml.safe_dump(made))


def wandb_losses(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in history if "train/loss" in row]


def test_a_run_feeds_its_trackers(hpclm: Callable[..., str], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    recipe({"wandb": True, "mlflow": {"experiment": "ours", "uri": "ours"}, "tensorboard": True})
    hpclm("submit", "recipe.yaml", "--wait")
    # a stage is complete before what is beside it has ended
    (stage,) = tmp_path.glob("runs/*/stages/program")
    made = wandb_files.offline_run(stage / "wandb")
    assert wandb_losses(wandb_files.history(made)) == LOSSES
    assert wandb_files.run_of(made).project == "p"
    wait_until("TensorBoard's file", lambda: list(stage.glob("tensorboard/events.*")))
    wait_until("MLflow's folder", (tmp_path / "ours").exists)
    client = MlflowClient(tracking_uri=(tmp_path / "ours").as_uri())
    experiment = wait_until("MLflow's experiment", lambda: client.get_experiment_by_name("ours"))
    ended = "attributes.status = 'FINISHED'"
    (run,) = wait_until("its run", lambda: client.search_runs([experiment.experiment_id], filter_string=ended))
    assert run.data.params["resources.devices_per_node"] == "1"
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")] == LOSSES


def test_track_gives_a_finished_run_later(
    hpclm: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe({})
    hpclm("submit", "recipe.yaml", "--wait")
    assert hpclm("track", "--to", "mlflow").startswith("4 rows; MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-")
    assert hpclm("track", "--tensorboard", "events") == "4 rows; tensorboard --logdir events\n"
    offline = hpclm("track", "--to", "wandb")
    (folder,) = tmp_path.glob("wandb/*/program")
    made = wandb_files.offline_run(folder)
    assert wandb_losses(wandb_files.history(made)) == LOSSES
    assert offline == f"4 rows; wandb sync {made.parent}\n"
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        python("-m", "wandb", "sync", str(made.parent), check=True)
        (name,) = server.files
        assert wandb_losses(server.history(name)) == LOSSES
        server.files.clear()
        said = hpclm("track", "--to", "wandb")
        assert said == f"4 rows; {server.url}/team/p/runs/{name}\n"
        assert wandb_losses(server.history(name)) == LOSSES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what for: --to NAME; choose tensorboard, wandb, mlflow"),
        (["--to", "wnadb"], "wandb"),
        (["--to", "wandb", "--tensorboard", "x"], "--tensorboard FOLDER excludes --to and --folder; keep one"),
    ],
)
def test_what_cannot_be_meant_is_one_message(hpclm: Callable[..., str], arguments: list[str], message: str) -> None:
    said = hpclm("track", *arguments, code=1)
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        ({"wandb": {"projct": "x"}}, "unknown key; did you mean 'project'?"),
        ({"wandb": 3}, "recipe.yaml:"),
        ({"mlflow": {"uri": "https://me:hunter2hunter2@host/x"}}, "MLFLOW_TRACKING_PASSWORD in the site profile's"),
        ({"wandb": {"tags": ["hf_" + "a1B2c3D4e5F6g7H8"]}}, "looks like a secret"),
        ({"others": {"wandb": {}}}, "wandb has a key of its own; write it as tracking.wandb"),
        ({"others": {"nobodys": {}}}, "no installed package has a tracker 'nobodys'"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_message(
    hpclm: Callable[..., str], tracking: dict[str, Any], message: str
) -> None:
    recipe(tracking)
    said = hpclm("plan", "recipe.yaml", code=2)
    assert message in said
    assert "hunter2" not in said
    assert "a1B2c3" not in said
    assert "Traceback" not in said


def test_what_is_off_is_off(hpclm: Callable[..., str]) -> None:
    from hpclm.recipe.loading import load

    recipe({"wandb": False, "mlflow": False})
    assert load(Path("recipe.yaml")).stages[0].recipe.tracking.trackers == {}
    recipe({"wandb": True, "mlflow": {"uri": "x"}})
    trackers = load(Path("recipe.yaml")).stages[0].recipe.tracking.trackers
    assert json.loads(json.dumps(trackers)) == {"wandb": {"tags": []}, "mlflow": {"uri": str(Path("x").absolute())}}
