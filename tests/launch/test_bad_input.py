"""Broken recipes through the command line: one message, nothing submitted, no files left, nothing executed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.core.errors import SiteError
from hpclm.core.layout import StagePaths
from hpclm.core.shipped import launch_folder
from hpclm.runs import submit as submitting
from hpclm.schedulers.slurm import job_script
from tests.support.broken import CASES, HOSTILE
from tests.support.broken_case import Case
from tests.support.harness import use_fake_worker
from tests.support.processes import run

RUNTIMES = ("pyxis", "enroot", "singularity", "apptainer")


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any step towards a scheduler would be a failure."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"something was submitted: {arguments}")

    monkeypatch.setattr(submitting, "start", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_broken_recipe_is_refused_and_leaves_nothing(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = case.build(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument for override in case.overrides for argument in ("--set", override)]
    code = cli.run(["submit", str(recipe), *arguments, "--runs-dir", str(tmp_path / "runs")])
    out, err = capsys.readouterr()
    assert code in (2, 3), err
    assert out == ""
    assert "\nerror: " in f"\n{err}"
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.id)
def test_what_a_recipe_may_say_is_only_data_to_the_job_script(
    case: Case, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is run, with an srun in its way that writes down what it was given."""
    recipe = case.build(tmp_path)
    site = tmp_path / "site.yaml"
    site.write_text(f"scheduler: slurm\ncontainer: {{runtime: {runtime}}}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    # what starts the ranks is written down, and the stage is then complete; the check of the nodes goes well
    (programs / "srun").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *hpclm.worker*) printf "%s\\0" "$@" > {tmp_path}/srun-arguments; echo ok > result.json;; esac\n'
    )
    (programs / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / ("it's a folder; #" if runtime == "pyxis" else "it's $(touch pwned); `touch pwned` #")
    if runtime == "pyxis" and "mount" in case.id:
        # Pyxis itself writes mounts into a script that a shell runs on the node
        with pytest.raises(SiteError, match="pyxis passes it to a shell"):
            submitting.prepare(submitting.Request(recipe, site=str(site), runs_dir=folder))
        return
    prepared = submitting.prepare(submitting.Request(recipe, site=str(site), runs_dir=folder))
    assert prepared.jobs[0].in_container
    for job in prepared.jobs:
        stage = StagePaths(Path(job.stage_dir))
        stage.job_folder.mkdir(parents=True)
        (Path(job.payload) / "launch").mkdir(parents=True, exist_ok=True)
        shutil.copy(launch_folder() / "supervise.sh", Path(job.payload) / "launch")
        environment = os.environ | {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node0", "SLURM_JOB_NUM_NODES": "1"}
        script = job_script.render(job, prepared.site)
        run(["bash", "-u", "-c", script], cwd=stage.root, check=True, env=environment)
        given = (tmp_path / "srun-arguments").read_bytes().decode().split("\0")[:-1]
        assert given[-6:] == ["python3", "-u", "-m", "hpclm.worker", job.stage_dir, "001"]
        assert [part for part in job.launch.prefix if part not in given] == []
        assert [part for part in job.launch.srun_args if part not in given] == []
    assert not list(tmp_path.rglob("pwned"))


def test_and_to_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case of a template; the others are of a container, which a local run has none of."""
    (case,) = (one for one in HOSTILE if one.id == "legal-template")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    use_fake_worker(monkeypatch, ())
    recipe = case.build(tmp_path)
    assert (
        cli.run(["submit", str(recipe), "--set", "container=null", "--wait", "--runs-dir", str(tmp_path / "r $(x)")])
        == 0
    )
    assert not list(tmp_path.rglob("pwned"))
