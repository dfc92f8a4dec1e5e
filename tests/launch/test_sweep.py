"""Sweeps on this machine: how they are written, refused, run, shown and gathered."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from hpclm.core.errors import RecipeError
from hpclm.runs.sweep import parse_axis
from tests.support.harness import Stage, use_fake_worker
from tests.support.samples import DROP, changed, write
from tests.support.waiting import wait_until

MANY_SEEDS = "seed=" + ",".join(map(str, range(200)))
MANY_RATES = "optim.lr=" + ",".join(f"1e-{number}" for number in range(1, 60))
STAGES = (Stage("pretrain"), Stage("ptune", "p-tuning"))


@pytest.fixture
def hpclm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command in a folder with the sample recipe, with the fake worker in its runs."""
    stages = [{"name": "pretrain", "task": "pretrain"}, {"name": "ptune", "task": "p-tuning", "base": "pretrain"}]
    write(tmp_path, changed(("container", None), ("stages", stages), ("generation", DROP)))
    monkeypatch.chdir(tmp_path)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    use_fake_worker(monkeypatch, STAGES)

    def command(*arguments: str, code: int = 0) -> str:
        assert cli.run(list(arguments)) == code, capsys.readouterr()
        out, err = capsys.readouterr()
        return out if code == 0 else err

    return command


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("optim.lr=1e-4,3e-4", "optim.lr", ("1e-4", "3e-4")),
        ("seed=1,2", "trainer.seed", ("1", "2")),
        ("optim.betas=[0.9,0.95],[0.9,0.99]", "optim.betas", ("[0.9,0.95]", "[0.9,0.99]")),
        ("name='a,b',\"c,d\"", "name", ("'a,b'", '"c,d"')),
        ("a.b=one", "a.b", ("one",)),
    ],
)
def test_values_are_parted_at_commas_but_not_inside_quotes_and_brackets(
    text: str, key: str, values: tuple[str, ...]
) -> None:
    axis = parse_axis(text)
    assert (axis.key, axis.values) == (key, values)


@pytest.mark.parametrize("text", ["optim.lr", "optim.lr=", "=1,2", "optim.lr=1,", "optim.lr=1,1", ""])
def test_what_is_no_sweep_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--sweep"):
        parse_axis(text)


def test_a_grid_runs_and_is_gathered_best_first(hpclm: Callable[..., str], tmp_path: Path) -> None:
    argv = ["--sweep", "optim.lr=1e-4,3e-4", "--sweep", "seed=1,2", "--max-running", "2"]
    shown = json.loads(hpclm("submit", "recipe.yaml", *argv, "--wait", "--json"))
    assert [member["state"] for member in shown["members"]] == ["completed"] * 4
    settings = [(one["settings"]["optim.lr"], one["settings"]["trainer.seed"]) for one in shown["members"]]
    assert sorted(settings) == [("1e-4", "1"), ("1e-4", "2"), ("3e-4", "1"), ("3e-4", "2")]
    name = shown["sweep"]
    assert "4 runs: 4 completed; by val_loss" in hpclm("status", name)
    assert "4 runs: 4 completed; by val_loss" in hpclm("status")
    # a member is a run like any other
    assert f"{name}.002  completed" in hpclm("status", f"{name}.002")
    hpclm("collect", f"{name}.003", "--out", "third")
    resolved = json.loads((tmp_path / "third" / "resolved.json").read_text())
    assert "0.0003" in json.dumps(resolved)
    out = hpclm("collect", name)
    assert out.splitlines()[-2].startswith(f"best: {name}.")
    with (tmp_path / "runs" / name / "results" / "sweep.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert set(rows[0]) == {"run", "optim.lr", "trainer.seed", "state", "val_loss", "loss"}


def test_a_dry_run_leaves_nothing(hpclm: Callable[..., str], tmp_path: Path) -> None:
    out = hpclm("submit", "recipe.yaml", "--sweep", "seed=1,2,3", "--dry-run")
    assert "3 runs, compared by val_loss" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--sweep", "optim.rl=1,2"], 2, "unknown key; known here: betas, epsilon, lr"),
        (["--sweep", "optim.lr=1e-4,many"], 2, "optim.lr"),
        (["--sweep", "seed=1,2", "--sweep", "trainer.seed=3"], 2, "swept twice"),
        (["--sweep", "resources.devices_per_node=2,4"], 4, "members of one job array must request the same"),
        (["--sweep", "parallel.tensor=2,3"], 3, "3"),
        (["--sweep", MANY_SEEDS, "--sweep", MANY_RATES], 2, "the maximum is"),
    ],
)  # fmt: skip
def test_a_fault_in_any_member_is_found_before_anything_is_written(
    hpclm: Callable[..., str], tmp_path: Path, argv: list[str], code: int, words: str
) -> None:
    assert words in hpclm("submit", "recipe.yaml", *argv, code=code)
    assert not (tmp_path / "runs").exists()


def test_a_cancelled_sweep_starts_no_more_members_and_resume_does_the_rest(
    hpclm: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = (Stage("pretrain", behaviour={"seconds": 30}), *STAGES[1:])
    use_fake_worker(monkeypatch, slow)
    hpclm("submit", "recipe.yaml", "--sweep", "seed=1,2,3")
    (root,) = (tmp_path / "runs").glob("[!.]*")
    wait_until("a running member", lambda: "running" in states(hpclm, root), seen=lambda: states(hpclm, root))
    assert states(hpclm, root) == {"pending": 2, "running": 1}
    assert "cancelled 3 of 3 runs" in hpclm("cancel", root.name)
    until_all(hpclm, root, "cancelled")
    (root / "behaviour.json").write_text("{}")
    hpclm("resume", root.name)
    until_all(hpclm, root, "completed")


def until_all(hpclm: Callable[..., str], root: Path, state: str) -> None:
    wait_until(
        f"all members to be {state}", lambda: set(states(hpclm, root)) == {state}, seen=lambda: states(hpclm, root)
    )


def states(hpclm: Callable[..., str], root: Path) -> dict[str, int]:
    found: list[dict[str, Any]] = json.loads(hpclm("status", root.name, "--json"))["members"]
    words = [one["state"] for one in found]
    return {word: words.count(word) for word in words}


def test_hostile_values_are_only_data(hpclm: Callable[..., str], tmp_path: Path) -> None:
    hostile = """data.train=['$(touch pwned).jsonl'],["`touch pwned`.jsonl"]"""
    message = hpclm("submit", "recipe.yaml", "--sweep", hostile, code=3)
    assert "$(touch pwned).jsonl" in message or "data.train" in message
    assert not list(tmp_path.rglob("pwned"))
