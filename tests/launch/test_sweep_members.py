"""A job of a sweep on Slurm makes the folder of its stage when it starts: with the same files as a run's own submit."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from hpclm.core.files import read_object
from hpclm.core.records import to_dict
from hpclm.core.sealed import read_sealed
from hpclm.runs import sweep as sweeping
from hpclm.runs.submit import Prepared, Request
from hpclm.runs.sweep import Sweep, parse_axis, prepare_sweep
from hpclm.schedulers.slurm import client
from hpclm.schedulers.slurm.job_script import render
from tests.support.processes import run
from tests.support.samples import changed, write

STAGES = [{"name": "pretrain", "task": "pretrain"}, {"name": "more", "task": "p-tuning", "base": "pretrain"}]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "it's a folder #1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(client, "sbatch", lambda argv: "77")
    monkeypatch.setattr(client, "max_array_size", lambda: 1001)
    return folder


def submitted(folder: Path, axis: str, *, container: bool = False) -> tuple[Sweep, list[Prepared]]:
    """A sweep as `submit_sweep` leaves it, on a machine without Slurm."""
    site = "slurm"
    if container:
        Path("site.yaml").write_text("scheduler: slurm\ncontainer: {runtime: apptainer}\n")
        site = "site.yaml"
    write(folder, changed(("stages", STAGES), *(() if container else [("container", None)])))
    sweep, made = prepare_sweep(Request(Path("recipe.yaml"), site=site), [parse_axis(axis)])
    made = [dataclasses.replace(one, problems=(), imports=()) for one in made]
    sweeping.submit_sweep(sweep, made)
    return sweep, made


def start_member(sweep: Sweep, stage: str, index: int, *, code: int = 0) -> str:
    """What Slurm does: run the array's script as one of its tasks, its output in the log that it names."""
    script = sweep.paths.array(0).script(stage)
    log = Path(str(sweep.paths.logs / f"{stage}-77_{index}_batch.log"))
    task = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_ID": str(100 + index)}
    with log.open("w") as file:
        done = run(["bash", script], env={**os.environ, **task}, capture_output=False, stdout=file, stderr=file)
    assert done.returncode == code, log.read_text()
    return log.read_text()


def test_a_started_member_has_the_files_of_a_run(place: Path) -> None:
    sweep, made = submitted(place, "seed=5,6,7")
    supervise = sweep.paths.payload / "launch" / "supervise.sh"
    supervise.parent.chmod(0o755)
    supervise.unlink()
    supervise.write_text('echo "stage $hpclm_stage"\n')
    for index in (0, 2):
        for job, spec in zip(made[index].jobs, made[index].specs, strict=True):
            stage = made[index].paths.stage(job.stage)
            assert not stage.root.exists()
            assert f"stage {stage.root}\n" == start_member(sweep, job.stage, index)
            assert stage.script.read_text() == render(job, made[index].site)
            assert read_sealed(stage.spec) == to_dict(spec)
            assert (read_object(stage.spec) or {}).get("sha256_of_rest")
            assert stage.batch_log(f"77_{index}").read_text() == f"stage {stage.root}\n"
            assert len(stage.batch_logs()) == 1
    assert not made[1].paths.stages.exists()


def test_what_a_resume_wrote_is_kept(place: Path) -> None:
    sweep, made = submitted(place, "seed=5,6")
    stage = made[1].paths.stage("pretrain")
    stage.root.mkdir(parents=True)
    stage.spec.write_text("{}")
    stage.script.write_text("echo mine\n")
    assert start_member(sweep, "pretrain", 1) == "mine\n"
    assert stage.spec.read_text() == "{}"


def test_a_member_that_cannot_be_made_says_why(place: Path) -> None:
    sweep, made = submitted(place, "seed=5,6")
    sweep.paths.array(0).specs("pretrain").write_bytes(b"no archive")
    with pytest.raises(AssertionError, match="gzip"):
        start_member(sweep, "pretrain", 1)
    assert "gzip" in made[1].paths.stage("pretrain").batch_log("77_1").read_text()


def test_members_whose_scripts_differ_have_their_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = place.with_name("plain")  # images are not taken from every folder
    plain.mkdir()
    monkeypatch.chdir(plain)
    sweep, made = submitted(plain, "container.environment.WORDS=a,'x@HPCLM_MEMBER@',c", container=True)
    for one in made:
        job = one.jobs[0]
        own = render(job, one.site)
        template = sweep.paths.array(0).member_script(job.stage).read_text()
        made_of_template = template.replace("@HPCLM_MEMBER@", one.paths.name)
        script = one.paths.stage(job.stage).script
        assert (script.read_text() if script.exists() else made_of_template) == own
    assert [one.paths.stage("pretrain").script.exists() for one in made] == [False, True, True]
