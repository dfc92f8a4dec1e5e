"""The command line: quick, quiet about its insides, and safe to be wrong at."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpclm.cli import app as cli
from tests.support.harness import Stage, use_fake_worker
from tests.support.processes import environment

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


def best_of(count: int, *arguments: str | Path) -> float:
    """The shortest wall time of a whole process; the others say how busy the machine is."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run([*HPCLM, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return min(times)


def test_help_comes_at_once() -> None:
    assert best_of(7, "--help") < 0.2  # 0.06 s on the machine this was written on


def test_a_dry_run_comes_at_once(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no Slurm: how long one takes to answer is not ours
    assert best_of(5, "submit", recipe, "--dry-run") < 0.6  # 0.20 s
    assert best_of(5, "submit", recipe, "--site", "slurm", "--dry-run") < 0.6  # 0.27 s


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
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "", done.stderr


def test_neither_does_a_whole_run(recipe: Path) -> None:
    script = (
        "import sys, pytest\n"
        "from tests.support.harness import use_fake_worker; use_fake_worker(pytest.MonkeyPatch(), ())\n"
        "from hpclm.cli import run\n"
        "codes = [run(['submit', 'tiny.yaml', '--wait']), run(['status']), run(['logs']), run(['collect'])]\n"
        f"assert codes == [0, 0, 0, 0], codes\nassert not set(sys.modules) & set({HEAVY!r}), sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=False
    )
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
    use_fake_worker(
        monkeypatch, (Stage("pretrain", behaviour={"seconds": 30, "fail": {"rank": 1, "message": "boom"}}),)
    )
    code, out, err = hpclm(capsys, "submit", recipe, "--wait")
    assert code == 7
    assert "rank 1 on host-0: RuntimeError: boom" in out
    assert err.startswith("error: run tiny-")
    assert "Traceback" not in err
    code, out, err = hpclm(capsys, "resume", "--wait", "--json")
    assert code == 0
    assert json.loads(out)["state"] == "completed"


def test_ctrl_c_ends_the_looking_and_not_the_run(recipe: Path) -> None:
    script = (
        "import sys, pytest\n"
        "from tests.support.harness import Stage, use_fake_worker\n"
        "use_fake_worker(pytest.MonkeyPatch(), (Stage('pretrain', behaviour={'seconds': 3}),))\n"
        "from hpclm.cli import run; sys.exit(run(['submit', 'tiny.yaml', '--wait']))"
    )
    terminal, theirs = pty.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    deadline = time.monotonic() + 20
    while not list(Path("runs").glob("*/stages/pretrain/progress.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(shell.pid, signal.SIGINT)
    assert shell.wait(timeout=20) == 130
    shown = b""
    try:
        while block := os.read(terminal, 65536):
            shown += block
    except OSError:  # how a terminal says that nobody is left
        pass
    os.close(terminal)
    assert b"no longer following" in shown
    assert b"Traceback" not in shown
    done = subprocess.run([*HPCLM, "status", "--watch", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "completed"


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
        (["submit", "tiny.yaml", "--runs-dir", "a:b"], 4, "holds a colon"),
        (["submit", "tiny.yaml", "--runs-dir", "/proc/x"], 4, "the runs folder cannot be"),
        (["submit", "tiny.yaml", "--runs-dir", "tiny.yaml/x"], 4, "the runs folder cannot be"),
        (["submit", "tiny.yaml", "--site", "slurm"], 4, "sinfo not found"),
        (["status", "nothing"], 6, "no run 'nothing'"),
        (["status", "../tiny.yaml"], 6, "no run there"),
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
        Path("runs", name, "run.json").write_text("{}")
    code, _, err = hpclm(capsys, "status", "a")
    assert code == 6
    assert "could be any of a-1, a-2" in err
    code, out, err = hpclm(capsys, "status")
    assert (code, out) == (0, f"no runs in {Path.cwd() / 'runs'}\n")
    assert err.count("not a run's record") == 2
    code, _, err = hpclm(capsys, "status", "a-1")
    assert code == 1
    assert "not a run's record" in err
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
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "-", *HPCLM, "submit", str(recipe), "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
