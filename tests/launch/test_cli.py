"""The command line: fast, without tracebacks, and safe against mistakes."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from tests.support import processes
from tests.support.harness import Stage, use_fake_worker
from tests.support.processes import LIMIT_S, python, start
from tests.support.processes import hpclm as command
from tests.support.waiting import wait_until

HPCLM = [sys.executable, "-m", "hpclm.cli"]
HEAVY = ("torch", "deepspeed", "megatron", "pynvml", "transformers", "numpy")
RECIPE = """version: 1
name: tiny
task: pretrain
model: {num_layers: 2, hidden_size: 32, num_attention_heads: 2, max_position_embeddings: 32}
tokenizer: {train: {vocab_size: 300}}
resources: {nodes: 1, devices_per_node: 2, device: cpu, time_limit_min: 5, memory_gib: 2}
parallel: {tensor: 2}
batch: {global: 4, micro: 2}
trainer: {max_steps: 5, precision: fp32}
optim: {lr: 1.0e-3}
text: {paths: [text], pattern: "*.txt", document: line, seq_length: 16}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small recipe with its text, in the current directory; nothing of the user's configuration is seen."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("HPCLM_RUNS_DIR", "HPCLM_SITE", "HPCLM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return path


def hpclm(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def children_cpu_s(run: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_ratio(*arguments: str | Path) -> float:
    """The CPU time of a whole command over that of a Python which imports a fixed part of its own library beside it.

    A ratio, for the CPU time of one and the same command triples where the other cores' work shares its caches.
    """
    yardstick = (
        "import asyncio, concurrent.futures, email.mime.text, http.server, logging.config, unittest.mock, xmlrpc.client"
    )
    costs, yards = [], []
    for _ in range(4):
        yards.append(children_cpu_s(lambda: python("-c", yardstick)))
        costs.append(children_cpu_s(lambda: command(*arguments)))
    return min(costs) / min(yards)


def test_help_comes_at_once() -> None:
    assert cpu_ratio("--help") < 3  # 1.4


def test_a_dry_run_comes_at_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no Slurm: how long one takes to answer is not ours
    assert cpu_ratio("submit", recipe, "--dry-run") < 12  # 5.9
    assert cpu_ratio("submit", recipe, "--site", "slurm", "--dry-run") < 12  # 6.6


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "tiny.yaml"],
        ["submit", "tiny.yaml", "--dry-run"],
        ["submit", "tiny.yaml", "--dry-run", "--site", "slurm", "--json"],
        ["status"],
        ["status", "--json"],
        ["logs"],
        ["collect"],
        ["resume"],
        ["version"],
        ["data", "--help"],
    ],
)
def test_the_login_side_never_imports_an_engine(recipe: Path, arguments: list[str]) -> None:
    code = (
        "import sys; from hpclm.cli import run; run(sys.argv[1:])\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY!r})), file=sys.stderr)"
    )
    done = python("-c", code, *arguments)
    assert done.stderr.splitlines()[-1] == "", done.stderr


def test_neither_does_a_whole_run(recipe: Path) -> None:
    script = (
        "import sys, pytest\n"
        "from tests.support.harness import use_fake_worker; use_fake_worker(pytest.MonkeyPatch(), ())\n"
        "from hpclm.cli import run\n"
        "codes = [run(['submit', 'tiny.yaml', '--wait']), run(['status']), run(['logs']), run(['collect'])]\n"
        f"assert codes == [0, 0, 0, 0], codes\nassert not set(sys.modules) & set({HEAVY!r}), sorted(sys.modules)"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_from_submit_to_collect(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_worker(monkeypatch, ())
    code, out, err = hpclm(capsys, "submit", recipe, "--name", "mine", "--json")
    assert (code, err) == (0, "")
    submitted = json.loads(out)
    run = submitted["run"]
    assert run.startswith("mine-")
    assert submitted["path"] == str(Path.cwd() / "runs" / run)
    code, out, _ = hpclm(capsys, "status", "mine", "--watch")
    assert code == 0
    assert "pretrain  completed  2/2" in out
    code, out, _ = hpclm(capsys, "logs", "-f")
    assert out.startswith("rank 0 of 2")
    code, out, _ = hpclm(capsys, "logs", run, "--rank", "1", "--stage", "pretrain")
    assert out.startswith("rank 1 of 2")
    code, out, _ = hpclm(capsys, "status", "--json")
    (shown,) = json.loads(out)["runs"]
    assert (shown["run"], shown["state"], shown["stages"][0]["step"]) == (run, "completed", 2)
    code, out, _ = hpclm(capsys, "collect", "--json")
    assert code == 0
    assert Path(json.loads(out)["folder"], "summary.md").exists()
    assert hpclm(capsys, "collect", "--pred-file", "x.txt")[0] == 8
    assert hpclm(capsys, "resume")[0] == 1
    assert hpclm(capsys, "cancel", "mine")[1] == f"{run}: already over\n"


def test_wait_returns_what_became_of_the_run(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_worker(monkeypatch, (Stage("pretrain", behaviour={"seconds": 1, "fail": {"rank": 1, "message": "boom"}}),))
    code, out, err = hpclm(capsys, "submit", recipe, "--wait")
    assert code == 7
    assert "rank 1 on host-0: RuntimeError: boom" in out
    assert err.startswith("error: run tiny-")
    assert "Traceback" not in err
    code, out, err = hpclm(capsys, "resume", "--wait", "--json")
    assert code == 0
    assert json.loads(out)["state"] == "completed"


@pytest.mark.parametrize("ignored", [(), (signal.SIGINT,)], ids=["in a terminal", "in a script's background job"])
def test_ctrl_c_ends_the_looking_and_not_the_run(recipe: Path, ignored: tuple[signal.Signals, ...]) -> None:
    script = (
        "import pytest\n"
        "from tests.support.harness import Stage, use_fake_worker\n"
        "use_fake_worker(pytest.MonkeyPatch(), (Stage('pretrain', behaviour={'seconds': 600}),))\n"
        "from hpclm.cli import main; main()"
    )
    terminal, theirs = pty.openpty()
    argv = [sys.executable, "-c", script, "submit", "tiny.yaml", "--wait"]
    shell = start(argv, ignored=ignored, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(read_all, terminal)
        try:
            wait_until("a step", lambda: list(Path("runs").glob("*/stages/pretrain/progress.json")), seen=shell.poll)
            os.killpg(shell.pid, signal.SIGINT)
            assert shell.wait(LIMIT_S) == 130
        finally:
            shell.kill()
    assert b"stopped following" in shown.result()
    assert b"Traceback" not in shown.result()
    (run,) = json.loads(command("status", "--json"))["runs"]
    assert run["state"] == "running"
    command("cancel", run["run"])


def read_all(terminal: int) -> bytes:
    """What a terminal shows until nobody writes to it any more."""
    shown = b""
    try:
        while block := os.read(terminal, 65536):
            shown += block
    except OSError:  # how a terminal says that nobody is left
        pass
    os.close(terminal)
    return shown


def test_a_dry_run_shows_everything_and_leaves_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path.cwd().rglob("*"))
    code, out, _ = hpclm(capsys, "submit", recipe, "--site", "slurm", "--nodes", "2", "--dry-run", "--json")
    assert code == 0
    shown = json.loads(out)
    assert "#SBATCH --nodes=2" in shown["stages"][0]["script"]
    assert shown["plan"]["world_size"] == 4
    code, out, _ = hpclm(capsys, "submit", recipe, "--dry-run")
    assert "dry run: nothing was submitted" in out
    assert "rank 0" in out
    assert sorted(Path.cwd().rglob("*")) == before


def test_every_finding_comes_at_once_with_file_and_line(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(RECIPE.replace("tensor: 2", "tensor: 3").replace("[text]", "[absent]"))
    code, out, err = hpclm(capsys, "submit", recipe)
    assert code == 3
    assert out == ""
    assert len(err.splitlines()) >= 2
    assert all(f"{recipe}:" in line for line in err.splitlines())
    assert hpclm(capsys, "plan", recipe)[0] == 3
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "absent.yaml"], 2, "absent.yaml"),
        (["submit", "tiny.yaml", "--set", "optim.lrr=1"], 2, "optim.lr"),
        (["submit", "tiny.yaml", "--site", "locale"], 4, "did you mean 'local'?"),
        (["submit", "tiny.yaml", "--name", "a b"], 4, "--name 'a b'"),
        (["submit", "tiny.yaml", "--name", "a\nb"], 4, "--name"),
        (["submit", "tiny.yaml", "--runs-dir", "a:b"], 4, "contains a colon"),
        (["submit", "tiny.yaml", "--runs-dir", "/proc/x"], 4, "the runs folder cannot be"),
        (["submit", "tiny.yaml", "--runs-dir", "tiny.yaml/x"], 4, "the runs folder cannot be"),
        (["submit", "tiny.yaml", "--site", "slurm"], 4, "sinfo not found"),
        (["status", "nothing"], 6, "no run 'nothing'"),
        (["status", "../tiny.yaml"], 6, "not a run"),
        (["logs"], 6, "no runs in"),
        (["cancel", ""], 6, "no run ''"),
        (["collect", "--out", "x"], 6, "no runs in"),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no Slurm
    before = sorted(Path.cwd().rglob("*"))
    found, out, err = hpclm(capsys, *arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert sorted(Path.cwd().rglob("*")) == before


def test_debug_shows_the_traceback(recipe: Path) -> None:
    with pytest.raises(Exception, match="absent"):
        cli.run(["submit", "absent.yaml", "--debug"])


def test_a_beginning_that_two_runs_share_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a-1", "a-2"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "run.json").write_text('{"version": 2}')
    code, _, err = hpclm(capsys, "status", "a")
    assert code == 6
    assert "is ambiguous: a-1, a-2" in err
    code, out, err = hpclm(capsys, "status")
    assert (code, out) == (0, f"no runs in {Path.cwd() / 'runs'}\n")
    assert err.count("not a valid run record") == 2
    code, _, err = hpclm(capsys, "status", "a-1")
    assert code == 1
    assert "not a valid run record" in err
    assert "Traceback" not in err


def test_what_a_run_was_started_with_holds_no_secret(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_worker(monkeypatch, ())
    monkeypatch.setenv("HF_TOKEN", "hf_secret123")
    _, out, _ = hpclm(capsys, "submit", recipe, "--wait", "--json")
    root = Path(json.loads(out)["path"])
    known: dict[str, Any] = json.loads((root / "environment.json").read_text())
    assert known["packages"]["hpclm"]
    for path in root.rglob("*"):
        if path.is_file():
            assert b"hf_secret123" not in path.read_bytes(), path


def test_a_closed_pipe_is_no_error(recipe: Path) -> None:
    done = processes.run(["bash", "-c", 'set -o pipefail; "$@" | true', "-", *HPCLM, "submit", recipe, "--dry-run"])
    assert "Traceback" not in done.stderr


def test_a_dry_run_with_missing_files_shows_plan_and_script_and_then_what_is_missing(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "text" / "a.txt").unlink()
    (recipe.parent / "text").rmdir()
    code, out, err = hpclm(capsys, "submit", recipe, "--site", "slurm", "--nodes", "2", "--dry-run")
    assert code == 3
    assert "rank 3" in out
    assert "#SBATCH --nodes=2" in out
    assert "text.paths" in err
    assert "does not exist" in err
    assert not (recipe.parent / "runs").exists()
    code, out, err = hpclm(capsys, "plan", recipe, "--json")
    found = json.loads(out)
    assert code == 3
    assert found["tensor_parallel"] == 2
    assert [one["severity"] for one in found["findings"]] == ["error"]


def test_the_first_command_of_the_readme_shows_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without the model and the rows."""
    squad = Path(__file__).parents[2] / "recipes" / "gpt20b_ptune.yaml"
    code, out, err = hpclm(capsys, "submit", squad, "--nodes", "2", "--dry-run")
    assert code == 3
    assert "GiB" in out
    assert "does not exist" in err


def test_a_runtime_of_slurm_is_refused_where_ranks_start_without_it(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = recipe.parent / "config" / "hpclm" / "sites" / "mine.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text("scheduler: local\ncontainer: {runtime: pyxis}\n")
    image = recipe.parent / "engine.sqsh"
    image.touch()
    recipe.write_text(RECIPE + f"container: {{image: {image}}}\n")
    code, _, err = hpclm(capsys, "submit", recipe, "--site", "mine")
    assert code == 4
    assert "its container runtime is part of Slurm's srun" in err
