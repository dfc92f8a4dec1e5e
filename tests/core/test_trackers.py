"""Weights & Biases and MLflow by their own packages: what was trained is read back from what they keep, a requeued run
is one curve, no secret is in it, and what they cannot do does not harm the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpclm.core.layout import RunPaths, StagePaths
from hpclm.core.sweep_layout import SweepPaths
from hpclm.core.sweep_recipes import write_recipes
from hpclm.tracking.curve import curve_of
from hpclm.tracking.follower import Follower
from hpclm.tracking.tracker import tracker_named
from hpclm.worker.tracking import tracked
from tests.support import wandb_files
from tests.support.processes import start
from tests.support.waiting import wait_until
from tests.support.wandb_server import wandb_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOKEN = "hf_" + "a1B2c3D4e5F6g7H8"
SECRETS = (TOKEN, "hunter2hunter2", "k" * 40)
RECIPE = {
    "name": "gpt",
    "version": 1,
    "stages": [
        {
            "name": "pretrain",
            "optim": {"lr": 0.001},
            "text": {"paths": [f"/data/{TOKEN}/x"]},
            "container": {"environment": {"OUR_API_KEY": SECRETS[1]}},
            "tracking": {"mlflow": {"uri": f"https://me:{SECRETS[1]}@tracker.example.org"}},
        }
    ],
}


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's shell without a key of wandb."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.fixture
def stage(tmp_path: Path) -> StagePaths:
    paths = RunPaths(tmp_path / "gpt-20261126-101500-abc123")
    stage = paths.stage("pretrain")
    stage.root.mkdir(parents=True)
    paths.resolved.write_text(json.dumps(RECIPE))
    return stage


def rows(first: int, last: int, loss: float = 5.0) -> str:
    made: list[dict[str, Any]] = []
    for n in range(first, last):
        made.append({"kind": "train", "step": n, "loss": loss - n / 10, "lr": 1e-3, "time": 100.0 + n})
        if n % 4 == 0:
            made.append({"kind": "validation", "step": n, "val_loss": loss - n / 20, "time": 100.5 + n})
    return "".join(json.dumps(row) + "\n" for row in made)


def follower(stage: StagePaths, name: str, **options: Any) -> Follower:
    tracker = tracker_named(name)
    return Follower(stage, lambda: tracker.open(stage.tracked(name), curve_of(stage, options)))


def interrupted(stage: StagePaths, name: str, **options: Any) -> None:
    """Nine steps, then a resume after the fourth: in the same process, and in a new one."""
    one = follower(stage, name, **options)
    stage.metrics.write_text(rows(1, 9))
    one.pass_on()
    new = stage.root / "new"
    new.write_text(rows(1, 5))
    new.replace(stage.metrics)
    with stage.metrics.open("a") as file:
        file.write(rows(5, 10, 6.0))
    one.pass_on()
    one.close()
    with stage.metrics.open("a") as file:
        file.write(rows(10, 12, 6.0))
    again = follower(stage, name, **options)
    again.pass_on()
    again.close()


EXPECTED = [round((5 if n < 5 else 6) - n / 10, 4) for n in range(1, 12)]


def written(folder: Path) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_wandb_offline_has_every_row_once_and_the_recipe(stage: StagePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", SECRETS[2])
    interrupted(stage, "wandb", tags=["a", "b"])
    made = wandb_files.offline_run(stage.tracked("wandb"))
    history = wandb_files.history(made)
    train = [row for row in history if "train/loss" in row]
    assert [(row["step"], round(row["train/loss"], 4)) for row in train] == list(
        zip(range(1, 12), EXPECTED, strict=True)
    )
    assert [row["_timestamp"] for row in train] == [100.0 + n for n in range(1, 12)]
    assert [row["step"] for row in history if "validation/val_loss" in row] == [4, 8]
    run = wandb_files.run_of(made)
    assert (run.run_id, run.project, run.display_name) == (
        "gpt-20261126-101500-abc123-pretrain",
        "gpt",
        "gpt-20261126-101500-abc123/pretrain",
    )
    assert list(run.tags) == ["a", "b"]
    assert wandb_files.config_of(made)["optim"] == {"lr": 0.001}
    names = {path.name for path in stage.tracked("wandb").rglob("*") if path.is_file()}
    assert not names & {"requirements.txt", "wandb-metadata.json", "output.log", "conda-environment.yaml", "diff.patch"}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "tensorboard"])
def test_no_secret_is_recorded(
    stage: StagePaths, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRETS[2])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRETS[2])
    interrupted(stage, name)
    kept = list(written(stage.tracked(name)))
    assert kept
    said = "".join(capfd.readouterr()).encode()
    for secret in SECRETS:
        assert not any(secret.encode() in one for one in [*kept, said])


def test_wandb_online_sends_one_curve_and_no_secret(stage: StagePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRETS[2])
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        interrupted(stage, "wandb", project="p", entity="us")
        name = "gpt-20261126-101500-abc123-pretrain"
        history = [row for row in server.history(name) if "train/loss" in row]
        assert [(row["step"], round(row["train/loss"], 4)) for row in history] == list(
            zip(range(1, 12), EXPECTED, strict=True)
        )
        assert {run["name"] for run in server.runs} == {name}
        assert {run["host"] for run in server.runs} == {None}
        assert not any(secret.encode() in body for body in server.bodies for secret in SECRETS)


def test_wandb_without_its_server_keeps_the_metrics(
    stage: StagePaths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpclm.tracking.wandb._INIT_S", 2.0)
    monkeypatch.setenv("WANDB_API_KEY", SECRETS[2])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    one = follower(stage, "wandb", mode="online")
    stage.metrics.write_text(rows(1, 6))
    one.pass_on()
    one.close()
    made = wandb_files.offline_run(stage.tracked("wandb"))
    assert len([row for row in wandb_files.history(made) if "train/loss" in row]) == 5
    assert one.note == f"wandb sync {made.parent}"
    said = capfd.readouterr().err
    assert "wandb: not online" in said
    assert "`hpclm track RUN --to wandb` gives them later" in said
    assert "Traceback" not in said


def test_wandb_online_without_a_key_says_where_to_put_it(stage: StagePaths, capfd: pytest.CaptureFixture[str]) -> None:
    one = follower(stage, "wandb", mode="online")
    stage.metrics.write_text(rows(1, 3))
    one.pass_on()
    one.close()
    assert "no API key is configured; name it in the site profile's secrets as WANDB_API_KEY" in capfd.readouterr().err
    assert wandb_files.offline_run(stage.tracked("wandb"))


@pytest.mark.parametrize("place", ["own", "uri", "environment"])
def test_mlflow_has_one_run_with_every_row(
    stage: StagePaths, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    folder = stage.tracked("mlflow") if place == "own" else tmp_path / "our runs"
    if place == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
    interrupted(stage, "mlflow", experiment="ours", **({"uri": str(folder)} if place == "uri" else {}))
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("ours")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, round(one.value, 4)) for one in history] == list(zip(range(1, 12), EXPECTED, strict=True))
    assert [one.timestamp for one in history] == [(100 + n) * 1000 for n in range(1, 12)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "gpt-20261126-101500-abc123/pretrain"
    assert (run.data.params["recipe"], run.data.params["optim.lr"]) == ("gpt", "0.001")
    assert "a1B2" not in str(run.data.params)


def test_mlflow_without_its_server_does_not_end_the_rank(
    stage: StagePaths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    began = time.monotonic()
    with tracked({"mlflow": {"uri": "http://127.0.0.1:9"}, "tensorboard": {}}, stage.root):
        stage.metrics.write_text(rows(1, 6))
    assert time.monotonic() - began < 60
    assert list(stage.tracked("tensorboard").glob("events.*"))
    said = capfd.readouterr().err
    assert "mlflow: metrics are not passed on" in said
    assert "Traceback" not in said


def test_a_tracker_that_failed_has_everything_when_it_works_again(stage: StagePaths) -> None:
    one = follower(stage, "tensorboard")
    stage.tracked("tensorboard").write_text("a file in the way")
    stage.metrics.write_text(rows(1, 6))
    with pytest.raises(FileExistsError):
        one.pass_on()
    one.begin_anew()
    stage.tracked("tensorboard").unlink()
    assert one.pass_on() == 6
    one.close()


def test_its_process_tries_again_by_itself(stage: StagePaths) -> None:
    code = "import sys, hpclm.tracking.__main__ as it; it._FIRST_RETRY_S = 0.1; it.main(*sys.argv[1:])"
    stage.tracked("tensorboard").write_text("a file in the way")
    stage.metrics.write_text(rows(1, 6))
    argv = [sys.executable, "-c", code, str(stage.root), "tensorboard", "{}"]
    with start(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        assert child.stderr.readline().startswith("tensorboard: metrics are not passed on (FileExistsError: ")
        stage.tracked("tensorboard").unlink()
        wait_until("the curve", lambda: list(stage.tracked("tensorboard").glob("events.*")))
        child.stdin.close()
        assert child.wait() == 0


def test_specs_of_earlier_versions_name_their_trackers(stage: StagePaths) -> None:
    with tracked(["tensorboard"], stage.root):
        stage.metrics.write_text(rows(1, 6))
    assert list(stage.tracked("tensorboard").glob("events.*"))


def test_a_member_of_a_sweep_has_its_recipe_from_the_sweep(tmp_path: Path) -> None:
    sweep = SweepPaths(tmp_path / "sweep")
    stage = sweep.run("sweep.001").stage("pretrain")
    stage.root.mkdir(parents=True)
    write_recipes(sweep, [("sweep.000", {"name": "other"}), ("sweep.001", RECIPE)])
    curve = curve_of(stage, {})
    assert (curve.name, curve.group, curve.config["optim"]) == ("sweep.001/pretrain", "gpt", {"lr": 0.001})
