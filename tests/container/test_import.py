"""One import for everybody: under a lock, complete or not at all, and a clear message if a registry refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpclm.cli import app as cli
from hpclm.containers import image_cache, parse_image
from hpclm.core.errors import SiteError
from tests.support import processes


def wanted(folder: Path, image: str = "nvcr.io/nvidia/nemo:23.02", runtime: str = "enroot") -> image_cache.Import:
    found = image_cache.planned(parse_image(image), runtime, folder / "images")
    assert found is not None
    return found


def test_a_file_needs_no_import(tmp_path: Path) -> None:
    assert image_cache.planned(parse_image("/images/a.sqsh"), "enroot", tmp_path) is None


@pytest.mark.parametrize("runtime", ["enroot", "singularity", "apptainer"])
def test_an_image_is_imported_once(runtime: str, tmp_path: Path, runtimes: Callable[..., None]) -> None:
    runtimes(runtime)
    said: list[str] = []
    one = wanted(tmp_path, runtime=runtime)
    assert image_cache.pull(one, said.append)
    assert json.loads(one.target.read_text())["source"].startswith("docker://nvcr.io")
    assert said[0].startswith("importing docker://nvcr.io/nvidia/nemo:23.02")
    assert not image_cache.pull(one, said.append)
    assert [path.name for path in one.target.parent.iterdir() if not path.name.endswith(".lock")] == [one.target.name]


def test_many_at_once_import_once(tmp_path: Path, runtimes: Callable[..., None]) -> None:
    runtimes("enroot")
    one = wanted(tmp_path)
    code = (
        "import sys; from pathlib import Path; from hpclm.containers import image_cache as cache, parse_image; "
        "one = cache.planned(parse_image('nvcr.io/nvidia/nemo:23.02'), 'enroot', Path(sys.argv[1])); "
        "print(cache.pull(one, lambda line: None))"
    )
    argv = [sys.executable, "-c", code, str(one.target.parent)]
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: processes.run(argv, check=True), range(6)))
    assert sorted(one.stdout.strip() for one in done) == ["False"] * 5 + ["True"]


def test_the_lock_of_a_dead_importer_holds_nobody(tmp_path: Path, runtimes: Callable[..., None]) -> None:
    runtimes("enroot")
    one = wanted(tmp_path)
    one.target.parent.mkdir()
    lock = one.target.with_name(f".{one.target.name}.lock")
    code = (
        f"import fcntl, time; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print(1, flush=True); time.sleep(99)"
    )
    with processes.start([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with ThreadPoolExecutor(1) as pool:
            said: list[str] = []
            pulling = pool.submit(image_cache.pull, one, said.append)
            time.sleep(0.3)
            assert not pulling.done()
            holder.kill()
            assert pulling.result(processes.LIMIT_S)
    assert "another import" in said[0]


def test_an_import_that_dies_leaves_nothing(
    tmp_path: Path, runtimes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes("enroot")
    monkeypatch.setenv("STANDIN_DIES", "1")
    one = wanted(tmp_path)
    with pytest.raises(SiteError, match="could not be imported"):
        image_cache.pull(one, lambda line: None)
    assert [path.name for path in one.target.parent.iterdir()] == [f".{one.target.name}.lock"]
    monkeypatch.delenv("STANDIN_DIES")
    assert image_cache.pull(one, lambda line: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_import_that_is_interrupted_leaves_nothing(
    number: int, tmp_path: Path, runtimes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes("enroot")
    one = wanted(tmp_path)
    profile = tmp_path / "site.yaml"
    profile.write_text(f"scheduler: local\ncontainer: {{runtime: enroot, images: {one.target.parent}}}\n")
    argv = [sys.executable, "-m", "hpclm.cli", "image", "pull", "nvcr.io/nvidia/nemo:23.02", "--site", str(profile)]
    environment = processes.environment(STANDIN_HANGS="1")
    with processes.start(argv, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pulling:
        assert pulling.stderr is not None
        while "half" not in pulling.stderr.readline():
            assert pulling.poll() is None
        (half,) = one.target.parent.glob(".*.sqsh")
        pulling.send_signal(number)
        assert pulling.wait(processes.LIMIT_S) != 0
    at_work = processes_that_name(half)
    if number == signal.SIGKILL:
        # Nothing could clean up: the next import does.
        for pid in at_work:
            os.kill(pid, signal.SIGKILL)
        assert image_cache.pull(one, lambda line: None)
    else:
        assert at_work == []
    assert not half.exists()
    assert one.target.exists() == (number == signal.SIGKILL)


def test_a_folder_of_images_that_is_somebody_elses_is_one_message(
    tmp_path: Path, runtimes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes("enroot")
    one = wanted(tmp_path)
    one.target.parent.mkdir(parents=True)
    # A link to itself in the lock's place: root, too, is refused.
    lock = one.target.with_name(f".{one.target.name}.lock")
    lock.symlink_to(lock.name)
    with pytest.raises(SiteError, match=r"the image folder cannot be written to.*container.images"):
        image_cache.pull(one, lambda line: None)


def processes_that_name(path: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if bytes(path) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_missing_credentials_are_said_and_never_written(
    tmp_path: Path, runtimes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes("enroot", "apptainer")
    config = tmp_path / "config"
    monkeypatch.setenv("ENROOT_CONFIG_PATH", str(config))
    image = "private.example/team/model:1"
    with pytest.raises(
        SiteError, match=r"401 Unauthorized\n.*\.credentials does not exist.*machine private.example login"
    ):
        image_cache.pull(wanted(tmp_path, image), lambda line: None)
    assert not config.exists()
    config.mkdir()
    (config / ".credentials").write_text("machine private.example login me password x\n")
    with pytest.raises(SiteError, match=r"\.credentials has a line"):
        image_cache.pull(wanted(tmp_path, image), lambda line: None)
    monkeypatch.delenv("APPTAINER_DOCKER_USERNAME", raising=False)
    with pytest.raises(SiteError, match=r"APPTAINER_DOCKER_USERNAME \(is not set"):
        image_cache.pull(wanted(tmp_path, image, "apptainer"), lambda line: None)


def test_the_command(tmp_path: Path, runtimes: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    runtimes("enroot")
    site = tmp_path / "site.yaml"
    site.write_text(f"scheduler: local\ncontainer: {{runtime: enroot, images: {tmp_path}/shared}}\n")
    assert cli.run(["image", "pull", "nvcr.io/nvidia/nemo:23.02", "--site", str(site), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["imported"] is True
    assert Path(shown["path"]).parent == tmp_path / "shared"
    assert cli.run(["image", "pull", "nvcr.io#nvidia/nemo:23.02", "--site", str(site)]) == 0
    assert "already exists" in capsys.readouterr().out
    for words in (["$(touch x)"], ["/a.sqsh"], ["nvcr.io/a/b", "--job"]):
        assert cli.run(["image", "pull", *words, "--site", str(site)]) == 4
        assert capsys.readouterr().err.startswith("error: ")


def test_the_script_of_an_import_job(tmp_path: Path, runtimes: Callable[..., None]) -> None:
    """It is run here as Slurm would run it: twice, the second time with nothing left to do."""
    runtimes("enroot")
    folder = tmp_path / "it's a $(touch pwned) folder"
    one = wanted(folder)
    one.target.parent.mkdir(parents=True)
    script = image_cache.job_script(one, {"partition": "cpu", "time": "60"}, folder / "log")
    assert "#SBATCH --partition=cpu" in script
    for _ in range(2):
        processes.run(["bash", "-u", "-c", script], check=True, cwd=tmp_path)
    assert one.target.exists()
    assert not list(tmp_path.rglob("pwned"))
