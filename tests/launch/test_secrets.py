"""Secrets reach the ranks and no file, argument or message."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.containers import ContainerRequest, launch_spec
from hpclm.core.errors import SiteError
from hpclm.core.secrets import Secret, looks_secret, masked
from hpclm.recipe.site_profile import read_profile
from hpclm.runs.rank_logs import log_path
from hpclm.runs.status import status_of
from hpclm.runs.submit import submit
from hpclm.schedulers.slurm.job_script import render
from tests.support.harness import Stage, prepared, until_over, use_fake_worker
from tests.support.sites import LOCAL, SLURM

VALUE, PASSWORD = "hf_AbCdEfGhIjKlMnOpQrStUv", "hunter2hunter2"
SECRETS = {"HF_TOKEN": Secret(from_env="MY_TOKEN"), "WANDB_API_KEY": Secret(from_file="/dev/shm/not there")}


def containing(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_rank_has_them_and_no_file_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    monkeypatch.setenv("MY_TOKEN", VALUE)
    stages = (Stage("pretrain", behaviour={"show": ["HF_TOKEN", "WANDB_API_KEY"]}),)
    use_fake_worker(monkeypatch, stages)
    site = dataclasses.replace(LOCAL, secrets={**SECRETS, "WANDB_API_KEY": Secret(from_file=str(key))})
    run = submit(prepared(tmp_path / "runs", stages, site))
    assert until_over(run).state == "completed"
    log = log_path(run, status_of([run])[0].stages[0], 0)
    assert f"HF_TOKEN {len(VALUE)}, WANDB_API_KEY 16" in log.read_text()
    assert containing(run.paths.root, VALUE) == []
    assert containing(run.paths.root, "0123456789abcdef") == []
    assert "HF_TOKEN" in run.paths.record.read_text()


def test_the_jobs_script_names_and_does_not_hold_them(tmp_path: Path) -> None:
    site = dataclasses.replace(SLURM, secrets=SECRETS)
    ready = prepared(tmp_path / "runs", (Stage("pretrain"),), site)
    script = render(ready.jobs[0], site)
    assert 'export HF_TOKEN="${MY_TOKEN:-}"' in script
    assert "WANDB_API_KEY=$(cat -- '/dev/shm/not there') || exit 1\nexport WANDB_API_KEY" in script


@pytest.mark.parametrize("runtime", ["enroot", "pyxis", "apptainer"])
def test_a_container_gets_them_by_name(runtime: str) -> None:
    image = "/images/a.sif" if runtime == "apptainer" else "/images/a.sqsh"
    spec = launch_spec(runtime, ContainerRequest(image, secrets=("HF_TOKEN",)))
    words = " ".join((*spec.srun_args, *spec.prefix))
    assert "HF_TOKEN=" not in words
    assert runtime == "apptainer" or "HF_TOKEN" in words  # Apptainer passes the job's environment by itself


def test_a_submit_without_them_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    ready = prepared(tmp_path / "runs", (Stage("pretrain"),), dataclasses.replace(LOCAL, secrets=SECRETS))
    from hpclm.core.secrets import missing

    with pytest.raises(SiteError, match=r"secrets.HF_TOKEN: the variable MY_TOKEN is not set here.*\n.*No such file"):
        submit(dataclasses.replace(ready, problems=tuple(missing(SECRETS))))


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("ANY", VALUE, True),
        ("ANY", "ghp_0123456789abcdefghij", True),
        ("ANY", "nvapi-0123456789abcdefghij", True),
        ("ANY", "AKIA0123456789ABCDEF", True),
        ("WANDB_API_KEY", "0123456789abcdef", True),
        ("DB_PASSWORD", "correct horse", True),
        ("HF_TOKEN_PATH", "/home/me/token", False),
        ("HF_TOKEN", "/home/me/token", False),
        ("HF_TOKEN", "", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("EOS_TOKEN", "<|endoftext|>", False),
        ("HTTPS_PROXY", "http://me:secret@proxy:3128", True),
        ("HTTPS_PROXY", "http://proxy:3128", False),
        ("DATA", "/data/sk-learn-classification-run/runs", False),
        ("MAX_TOKENS", "10000000000", False),
        ("NCCL_SOCKET_IFNAME", "ib0", False),
    ],
)
def test_what_looks_like_a_secret(name: str, value: str, secret: bool) -> None:
    assert looks_secret(name, value) == secret


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--set", f"container.environment.HF_TOKEN={VALUE}"], "HF_TOKEN looks like a secret"),
        (["--site", "site.yaml"], "HF_TOKEN looks like a secret"),
        (["--set", f"container.image=docker://me:{VALUE}@nvcr.io/nvidia/nemo:23.02"], "password or token"),
        (["--set", f"container.image=me:{VALUE}@nvcr.io/nvidia/nemo:23.02"], "password or token"),
        (["--set", f"container.image=me:{PASSWORD}@nvcr.io:5000/nemo:23.02"], "password or token"),
    ],
    ids=["recipe", "site", "image", "image without scheme", "image with a password"],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("site.yaml").write_text(f"scheduler: local\nenvironment: {{HF_TOKEN: {VALUE}}}\n")
    Path("recipe.yaml").write_text(
        "version: 1\nname: a\ntask: pretrain\ncontainer: {image: nvcr.io/nvidia/nemo:23.02}\n"
    )
    assert cli.run(["submit", "recipe.yaml", "--dry-run", *argv]) != 0
    shown = capsys.readouterr()
    assert said in shown.err
    assert not [word for word in (VALUE, PASSWORD) if word in shown.out + shown.err]


def test_the_profile_says_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("scheduler: local\nsecrets:\n  A: {from_env: B}\n  C: {from_file: ~/token}\n")
    expected = {"A": Secret(from_env="B"), "C": Secret(from_file=os.path.expanduser("~/token"))}  # noqa: PTH111
    assert read_profile(path).secrets == expected
    path.write_text("scheduler: local\nsecrets:\n  A: {from_env: B, from_file: /c}\n")
    with pytest.raises(SiteError, match=r"site.yaml:3 .*give one of from_env and from_file"):
        read_profile(path)
    path.write_text("scheduler: local\nsecrets:\n  A: hf_0123456789abcdefghij\n")
    with pytest.raises(SiteError) as caught:
        read_profile(path)
    assert "hf_0123" not in str(caught.value)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_files_of_a_run_follow_the_umask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mask: int) -> None:
    use_fake_worker(monkeypatch, (Stage("pretrain"),))
    before = os.umask(mask)
    try:
        run = submit(prepared(tmp_path / "runs", (Stage("pretrain"),), LOCAL))
        assert until_over(run).state == "completed"
    finally:
        os.umask(before)
    for path in run.paths.root.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o777
            assert mode & mask == 0, f"{path} {mode:o}"
            if path.is_relative_to(run.paths.payload) and "worker" not in path.parts:  # which the test makes
                assert mode & 0o022 == 0, f"{path} {mode:o}"
    assert run.paths.record.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {VALUE}.", "token ***."),
        ("http://me:secret@proxy:3128", "http://me:***@proxy:3128"),
        ("docker://me:se/cret@nvcr.io/nvidia/nemo:23.02", "docker://me:***@nvcr.io/nvidia/nemo:23.02"),
        ("sk-Ab3dEf6hIj9lMn2pQr5tUv8x", "***"),
        (
            "/data/sk-learn-classification-run-20261125-233916-60dd",
            "/data/sk-learn-classification-run-20261125-233916-60dd",
        ),
        ("12:30@room/5, john@example.org, user:abc@node1/data", "12:30@room/5, john@example.org, user:abc@node1/data"),
        ("nvcr.io/nvidia/nemo:23.02@sha256:" + "0a" * 32, "nvcr.io/nvidia/nemo:23.02@sha256:" + "0a" * 32),
    ],
)
def test_what_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("text", ["x", "a:", "://", "sk-", "eyJ", "a@", "hf_"])
def test_a_long_text_is_searched_once(text: str) -> None:
    """A message may quote a megabyte of a file."""
    began = time.process_time()
    masked(text * (1_000_000 // len(text)))
    assert time.process_time() - began < 2
