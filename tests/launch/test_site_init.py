"""A profile from what the scheduler says: right at once, whatever that is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.recipe.site_profile import read_profile

PLAIN = r"""cpu*|up|20|64|256000|2-00:00:00|(null)
gpu|up|8|96|1000000|1-00:00:00|gpu:a100:8(S:0-1)
old|down|4|32|64000|infinite|gpu:v100:4
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node with nothing but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("SCRATCH", "PSCRATCH", "WORK", "WORKDIR", "PROJECT"):
        monkeypatch.delenv(name, raising=False)
    program(folder, "sacctmgr", "echo 'You are not running a supported accounting_storage plugin' >&2; exit 1")
    program(folder, "srun", "echo usage")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def sinfo(folder: Path, text: str) -> None:
    (folder / "answer").write_text(text)
    program(folder, "sinfo", f"cat {folder / 'answer'}")


def test_the_profile_is_right_at_once(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sinfo(programs, PLAIN)
    program(programs, "sacctmgr", "printf 'physics\\nchem\\n'")
    program(programs, "srun", "echo '--container-image=IMAGE'")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("SCRATCH", str(scratch))
    assert cli.run(["site", "init", "mine"]) == 0
    path = tmp_path / "config" / "hpclm" / "sites" / "mine.yaml"
    assert str(path) in capsys.readouterr().out
    site = read_profile(path)
    assert (site.partition, site.account, site.runs_dir) == ("gpu", "physics", f"{scratch}/hpclm-runs")
    assert (site.container.runtime, site.cpus_per_device, site.gpu_request) == ("pyxis", 12, "gpus-per-node")
    text = path.read_text()
    assert "#   cpu: 20 nodes, 64 CPUs, 250 GiB, 2880 min at most (the default)" in text
    assert "#   old: 4 nodes, 4 v100 GPUs each, 32 CPUs, 62 GiB, no time limit (not up)" in text
    assert "#   gpu: 8 nodes, 8 a100 GPUs each, 96 CPUs" in text
    assert "# gpu_type: a100 " in text
    assert "# Your accounts: physics, chem" in text
    assert cli.run(["site", "list"]) == 0
    assert "mine  " in capsys.readouterr().out
    assert cli.run(["site", "show", "mine"]) == 0
    assert '"partition": "gpu"' in capsys.readouterr().out


def test_of_several_gpu_types_one_is_asked_for(programs: Path, tmp_path: Path) -> None:
    sinfo(programs, "gpu|up|8|96|1000000|1-00:00:00|gpu:v100:4\ngpu|up|2|96|1000000|1-00:00:00|gpu:h100:8\n")
    out = tmp_path / "site.yaml"
    assert cli.run(["site", "init", "--out", str(out)]) == 0
    assert read_profile(out).gpu_type == "h100"
    assert "# Types here: h100, v100; left out" in out.read_text()


def test_a_cluster_that_says_little(programs: Path, tmp_path: Path) -> None:
    sinfo(programs, "batch|up|2|8|0|infinite|(null)\n")
    out = tmp_path / "site.yaml"
    assert cli.run(["site", "init", "--out", str(out)]) == 0
    site = read_profile(out)
    assert (site.partition, site.account, site.runs_dir, site.gpu_request) == ("batch", None, None, "none")
    assert site.container.runtime == "none"


def test_one_that_is_there_stays(programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinfo(programs, PLAIN)
    out = tmp_path / "site.yaml"
    out.write_text("mine\n")
    assert cli.run(["site", "init", "--out", str(out)]) == 4
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine\n"
    assert cli.run(["site", "init", "--out", str(out), "--force"]) == 0


@pytest.mark.parametrize("name", ["local", "slurm", "a/b", "../x", "", "a b", "$(x)"])
def test_a_name_that_cannot_be_one(programs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sinfo(programs, PLAIN)
    assert cli.run(["site", "init", name]) == 4
    assert "is not a valid profile name" in capsys.readouterr().err


def test_without_a_scheduler_there_is_a_plain_word(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["PATH"] = str(programs)
    assert cli.run(["site", "init"]) == 5
    assert "sinfo not found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a: b", "#x", "'", '"', "a\\b", "- a", "{x}", "%TAG", "é"])
def test_a_strange_partition_cannot_break_the_profile(programs: Path, tmp_path: Path, name: str) -> None:
    """Its name may be none that a profile takes, and then the profile is refused with its line; never misread."""
    sinfo(programs, f"{name}*|up|2|8|1000|infinite|gpu:2\n")
    out = tmp_path / "site.yaml"
    code = cli.run(["site", "init", "--out", str(out)])
    if code == 0:
        assert read_profile(out).partition == name
    else:
        assert code == 4
