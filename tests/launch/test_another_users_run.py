"""A run in a folder that two users share: the second may look and collect; its jobs are the first one's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpclm.core.site import Site
from hpclm.runs.record import Run
from hpclm.runs.submit import submit
from tests.support.harness import CHAIN, prepared, until_over, use_fake_worker

NOBODY = 65534


def as_nobody(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-m", "hpclm.cli"]
    environment = {**os.environ, "HOME": "/nonexistent"}
    return subprocess.run([*argv, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that everybody may read, and write in; pytest's own is closed to others."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("to become another user takes root and setpriv (util-linux)")
    folder = Path(tempfile.mkdtemp(prefix="hpclm-shared-"))
    folder.chmod(0o777)
    if as_nobody("--version").returncode:
        shutil.rmtree(folder)
        pytest.skip("another user may not read this Python or this checkout")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def run(shared: Path) -> Run:
    with pytest.MonkeyPatch.context() as patched:
        use_fake_worker(patched, CHAIN)
        made = submit(prepared(shared / "runs", CHAIN, Site("local", "local")))
        until_over(made)
        return made


def left_by_nobody(run: Run) -> list[Path]:
    return [path for path in run.paths.root.rglob("*") if path.lstat().st_uid == NOBODY]


def test_another_user_may_look_and_collect(run: Run, shared: Path) -> None:
    shown = as_nobody("status", run.record.run, "--runs-dir", run.paths.root.parent)
    assert shown.returncode == 0, shown.stderr
    assert "completed" in shown.stdout
    out = shared / "collected"
    collected = as_nobody("collect", run.record.run, "--runs-dir", run.paths.root.parent, "--out", out)
    assert collected.returncode == 0, collected.stdout + collected.stderr
    assert (out / "summary.json").is_file(), collected.stdout + collected.stderr
    assert not left_by_nobody(run)


@pytest.mark.parametrize("command", ["cancel", "resume"])
def test_whose_run_it_is_is_said(run: Run, command: str) -> None:
    refused = as_nobody(command, run.record.run, "--runs-dir", run.paths.root.parent)
    assert refused.returncode != 0
    assert f"belongs to {run.record.user}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not left_by_nobody(run)
