"""Site profiles: what is wrong is said with its line, and nothing in them becomes shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclm.core.errors import SiteError
from hpclm.recipe.site_profile import read_profile
from hpclm.recipe.sites import load_site
from hpclm.runs.runs_folder import runs_folder

FULL = """
scheduler: slurm
partition: gpu
account: project-42
runs_dir: /scratch/me/runs
python: /opt/env/bin/python
gpu_request: gres
gpu_type: a100
cpus_per_device: 8
exclusive: true
container: {runtime: pyxis, mounts: ["/scratch:/scratch", "/data:/data:ro"]}
environment: {NCCL_SOCKET_IFNAME: ib0, NCCL_DEBUG: 1}
modules: [cuda/12.4]
sbatch: {reservation: course}
"""


def profile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mycluster.yaml"
    path.write_text(text)
    return path


def test_a_profile_is_read_whole(tmp_path: Path) -> None:
    site = read_profile(profile(tmp_path, FULL))
    assert (site.name, site.scheduler, site.partition, site.python) == (
        "mycluster",
        "slurm",
        "gpu",
        ("/opt/env/bin/python",),
    )
    assert site.environment == {"NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "1"}
    assert site.container.mounts == ("/scratch:/scratch", "/data:/data:ro")


def test_profiles_are_found_by_name_and_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    profile(tmp_path, FULL)
    assert load_site("mycluster", search=[tmp_path]).account == "project-42"
    with pytest.raises(SiteError, match=r"no such site; did you mean 'mycluster'\? known: local, slurm, mycluster"):
        load_site("mycluster1", search=[tmp_path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scheduler: slurm\npartitoin: gpu\n", r":2 partitoin: unknown key; did you mean 'partition'\?"),
        ("partition: gpu\n", r"scheduler: is required"),
        ("scheduler: pbs\n", r":1 scheduler: must be one of local, slurm, not pbs"),
        ("scheduler: slurm\ncpus_per_device: many\n", r":2 cpus_per_device: must be a int, not many"),
        ("scheduler: slurm\ncpus_per_device: 0\n", r":2 cpus_per_device: must be at least 1, not 0"),
        ("scheduler: slurm\npartition: 'a; rm -rf /'\n", r":2 partition: 'a; rm -rf /' is no word that Slurm knows"),
        ("scheduler: slurm\nsbatch: {'x\\ny': 1}\n", r"is no long option"),
        ('scheduler: slurm\nsbatch: {"x\\ntouch /tmp/evil": 1}\n', r"is no long option"),
        ("scheduler: slurm\nsbatch: {mem: 4G}\n", r"sbatch.mem: is decided by the run"),
        ('scheduler: slurm\nenvironment: {A: "x\\ny"}\n', r"environment.A: holds a control character"),
        ("scheduler: slurm\nenvironment: {'A B': x}\n", r"is no name of a variable"),
        ("scheduler: slurm\ncontainer: {runtime: docker}\n", r":2 container.runtime: must be one of none, pyxis"),
        ("scheduler: slurm\ncontainer: {mounts: [data]}\n", r"must be /source:/target"),
        ("scheduler: [\n", r":2: not YAML"),
        ("- a\n", r"is a mapping"),
        ("name: a/b\nscheduler: slurm\n", r":1 name: "),
    ],
)
def test_faults_say_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SiteError, match=said):
        read_profile(profile(tmp_path, text))


def test_the_shipped_example_is_valid() -> None:
    example = Path(__file__).parents[2] / "launch" / "sites" / "example.yaml"
    assert read_profile(example).container.runtime == "pyxis"


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(SiteError) as caught:
        read_profile(profile(tmp_path, "scheduler: pbs\npartitoin: x\nmodules: 3\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_an_absent_profile_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot read the site profile"):
        load_site(str(tmp_path / "none.yaml"))


def test_the_runs_folder_is_the_flags_then_the_environments_then_the_sites(tmp_path: Path) -> None:
    site = read_profile(profile(tmp_path, FULL))
    assert runs_folder(Path("/a"), site, {"HPCLM_RUNS_DIR": "/b"}) == Path("/a")
    assert runs_folder(None, site, {"HPCLM_RUNS_DIR": "/b"}) == Path("/b")
    assert runs_folder(None, site, {}) == Path("/scratch/me/runs")
    assert runs_folder(None, load_site("local"), {}) == Path.cwd() / "runs"


@pytest.mark.parametrize("name", ["/a/%j", "/a:b", "/a\\b", "/a\nb"])
def test_a_runs_folder_that_a_job_would_read_differently_is_refused(name: str) -> None:
    with pytest.raises(SiteError, match="--runs-dir"):
        runs_folder(Path(name), load_site("local"), {})
