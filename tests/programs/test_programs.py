"""Stages that run a program of the user's: what is put in, what is kept out, how it ends, what is gathered."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpclm.cli import app as cli
from tests.support.waiting import wait_until

ALL_REDUCE = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(x)
for step in range(1, 4):
    if dist.get_rank() == 0:
        print(f"iteration {step}/ 3 | lm loss: {1 / step:.3f} |", flush=True)
open(f"{sys.argv[1]}/sum-{dist.get_rank()}.txt", "w").write(f"{x.item()} of {dist.get_world_size()}")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture
def hpclm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str, code: int = 0) -> str:
        ended = cli.run(list(arguments))
        out, err = capsys.readouterr()
        assert ended == code, out + err
        return out if code == 0 else out + err

    return command


def recipe(*programs: dict[str, Any], **stage: Any) -> None:
    """recipe.yaml: one stage a program, each after the one before."""
    stages = []
    for number, program in enumerate(programs):
        after = {"after": [f"s{number - 1}"]} if number else {}
        stages.append(
            {"name": f"s{number}", "task": "program", "engine": "command", "program": program, **after, **stage}
        )
    resources = {"nodes": 1, "devices_per_node": 2, "device": "cpu", "time_limit_min": 5}
    Path("recipe.yaml").write_text(
        yaml.safe_dump({"version": 1, "name": "p", "resources": resources, "stages": stages})
    )


def status(hpclm: Callable[..., str]) -> dict[str, Any]:
    (run,) = json.loads(hpclm("status", "--json"))["runs"]
    return dict(run)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["rank", "torchrun"])
def test_ranks_meet_by_what_they_are_given(hpclm: Callable[..., str], tmp_path: Path, launcher: str) -> None:
    (tmp_path / "all_reduce.py").write_text(ALL_REDUCE)
    pattern = r"iteration (?P<step>\d+)/ *(?P<total_steps>\d+) .*lm loss: (?P<loss>[\d.]+)"
    argv = [sys.executable, str(tmp_path / "all_reduce.py"), "{stage_dir}"]
    recipe({"argv": argv, "launcher": launcher, "outputs": ["sum-*.txt"], "progress": pattern})
    hpclm("submit", "recipe.yaml", "--wait")
    (stage,) = status(hpclm)["stages"]
    assert (stage["state"], stage["step"], stage["total_steps"], stage["loss"]) == ("completed", 3, 3, 0.333)
    hpclm("collect")
    found = {path.name: path.read_text() for path in tmp_path.glob("runs/*/results/outputs/s0/*")}
    assert found == {"sum-0.txt": "3.0 of 2", "sum-1.txt": "3.0 of 2"}
    rows = [json.loads(line) for line in next(tmp_path.glob("runs/*/stages/s0/metrics.jsonl")).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_arguments_reach_the_program_as_they_are(hpclm: Callable[..., str], tmp_path: Path) -> None:
    odd = ["it's", '"', "$(touch pwned)", "`touch pwned`", "a;b", "#x", "{{braces}}", "é", "-n", "a,b:c", "*", "\\n"]
    code = "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ), os.getcwd()], open('seen.json', 'w'))"
    places = [
        "{rank}/{world_size}",
        "{node_rank}.{num_nodes}.{devices_per_node}",
        "{tensor}{pipeline}{data}",
        "{stage}",
    ]
    environment = {"ODD": "it's $HOME `x` #1"}
    recipe({"argv": [sys.executable, "-c", code, *odd, *places], "launcher": "torchrun", "environment": environment})
    text = (
        Path("recipe.yaml")
        .read_text()
        .replace("torchrun", "rank")
        .replace("devices_per_node: 2", "devices_per_node: 1")
    )
    Path("recipe.yaml").write_text(text)
    hpclm("submit", "recipe.yaml", "--wait")
    (seen,) = tmp_path.glob("runs/*/stages/s0/seen.json")
    arguments, variables, folder = json.loads(seen.read_text())
    assert arguments == [*(one.replace("{{", "{").replace("}}", "}") for one in odd), "0/1", "0.1.1", "111", "s0"]
    assert variables["ODD"] == environment["ODD"]
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert folder == str(seen.parent)
    assert not list(tmp_path.rglob("pwned"))


def test_a_failing_program_is_named_with_its_last_line_and_not_tried_again(
    hpclm: Callable[..., str], tmp_path: Path
) -> None:
    code = "import os, sys; print('row 7 is no JSON'); sys.exit(3 if os.environ['RANK'] == '1' else 0)"
    recipe({"argv": [sys.executable, "-c", code]}, {"argv": ["true"]})
    said = hpclm("submit", "recipe.yaml", "--wait", code=7)
    assert "ended with exit code 3; its last line: row 7 is no JSON" in said
    run = status(hpclm)
    assert [stage["state"] for stage in run["stages"]] == ["failed", "skipped"]
    assert run["stages"][0]["attempts"] == 1
    assert run["stages"][0]["rank"] == 1


def test_an_exit_code_worth_another_try_gets_one(hpclm: Callable[..., str], tmp_path: Path) -> None:
    recipe({"argv": [sys.executable, "-c", "import sys; sys.exit(0 if '{restart}' != '0' else 75)"],
            "retry_exit_codes": [75]})  # fmt: skip
    hpclm("submit", "recipe.yaml", "--wait")
    (stage,) = status(hpclm)["stages"]
    assert (stage["state"], stage["attempts"]) == ("completed", 2)


def test_a_program_that_leaves_nothing_is_not_complete(hpclm: Callable[..., str], tmp_path: Path) -> None:
    recipe({"argv": ["true"], "outputs": ["model/*.pt"]})
    assert "wrote no file that matches 'model/*.pt'" in hpclm("submit", "recipe.yaml", "--wait", code=7)


def test_a_program_that_is_not_there_is_said_so(hpclm: Callable[..., str], tmp_path: Path) -> None:
    recipe({"argv": ["no-such-program"]})
    assert "no-such-program cannot be started: No such file or directory" in hpclm(
        "submit", "recipe.yaml", "--wait", code=7
    )


def test_a_cancel_reaches_the_program(hpclm: Callable[..., str], tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "def stop(*_): open('told-' + os.environ['RANK'], 'w'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop); open('ready-' + os.environ['RANK'], 'w'); time.sleep(600)"
    )
    (tmp_path / "wait.py").write_text(code)
    recipe({"argv": [sys.executable, str(tmp_path / "wait.py")]})
    hpclm("submit", "recipe.yaml")
    wait_until(
        "both ranks",
        lambda: len(list(tmp_path.glob("runs/*/stages/s0/ready-*"))) == 2,
        seen=lambda: status(hpclm),
    )
    hpclm("cancel", status(hpclm)["run"])
    wait_until("the cancel", lambda: status(hpclm)["state"] == "cancelled", seen=lambda: status(hpclm))
    assert len(list(tmp_path.glob("runs/*/stages/s0/told-*"))) == 2


@pytest.mark.parametrize(
    ("program", "stage", "words"),
    [
        ({"argv": []}, {}, "argv"),
        ({"argv": ["a", "{rnak}"]}, {}, "no placeholder 'rnak'; there are rank,"),
        ({"argv": ["a", "{rank"]}, {}, "unmatched brace"),
        ({"argv": ["a\nb"]}, {}, "line break"),
        ({"argv": ["a"], "outputs": ["../x"]}, {}, "points outside the stage's folder"),
        ({"argv": ["a"], "outputs": ["/x"]}, {}, "points outside the stage's folder"),
        ({"argv": ["a"], "progress": "("}, {}, "is not a valid regular expression"),
        ({"argv": ["a"], "progress": "x"}, {}, "has no group"),
        ({"argv": ["a"], "environment": {"SLURM_X": "1"}}, {}, "belongs to the launcher"),
        ({"argv": ["a"]}, {"engine": "hpclm"}, "engine megatron does not support program; choose pretrain or"),
        (
            {"argv": ["a"]},
            {"task": "pretrain"},
            "engine command does not support pretrain; choose program, or engine megatron",
        ),
        ({"argv": ["a"]}, {"after": ["nobody"]}, "nobody is not an earlier stage"),
        ({"argv": ["a"]}, {"program": None}, "program: is missing"),
    ],
)
def test_a_mistake_is_one_message_with_its_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: dict[str, Any],
    stage: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe(program, **stage)
    assert cli.run(["submit", "recipe.yaml"]) in (2, 3)
    said = capsys.readouterr().err
    assert words in said
    assert "recipe.yaml:" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_that_a_stage_waits_for_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe({"argv": ["a"]}, after=["nobody"])
    assert cli.run(["submit", "recipe.yaml", "--dry-run", "--site", "slurm"]) in (2, 3)
    assert "nobody is not an earlier stage" in capsys.readouterr().err
