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
    with pytest.raises(SiteError, match=r"unknown site; did you mean 'mycluster'\? known: local, slurm, mycluster"):
        load_site("mycluster1", search=[tmp_path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scheduler: slurm\npartitoin: gpu\n", r":2 partitoin: unknown key; did you mean 'partition'\?"),
        ("partition: gpu\n", r":1 scheduler: is missing; add it"),
        (
            "scheduler: pbs\n",
            r":1 scheduler: must be one of the allowed values, not the text 'pbs'; choose local, slurm",
        ),
        (
            "scheduler: slurm\ncpus_per_device: many\n",
            r":2 cpus_per_device: must be a whole number, not the text 'many'",
        ),
        ("scheduler: slurm\ncpus_per_device: 0\n", r":2 cpus_per_device: 0 is out of range; choose at least 1"),
        (
            "scheduler: slurm\npartition: 'a; rm -rf /'\n",
            r":2 partition: 'a; rm -rf /' is not a valid name for a scheduler",
        ),
        ("scheduler: slurm\nsbatch: {'x\\ny': 1}\n", r":2 sbatch.*is not a long option"),
        ('scheduler: slurm\nsbatch: {"x\\ntouch /tmp/evil": 1}\n', r"cannot be a key; a key is one word"),
        ("scheduler: slurm\nsbatch: {mem: 4G}\n", r":2 sbatch.mem: mem is set by hpclm"),
        ('scheduler: slurm\nenvironment: {A: "x\\ny"}\n', r":2 environment.A: .* contains a control character"),
        ("scheduler: slurm\nenvironment: {'A B': x}\n", r":2 environment.*is not a variable name"),
        (
            "scheduler: slurm\ncontainer: {runtime: docker}\n",
            r":2 container.runtime: must be one of the allowed values, not the text 'docker'; choose none, pyxis",
        ),
        ("scheduler: slurm\ncontainer: {mounts: [data]}\n", r"must be /source:/target"),
        ("scheduler: [\n", r":2: not valid YAML"),
        ("- a\n", r"is a mapping"),
        ("name: a/b\nscheduler: slurm\n", r":1 name: "),
    ],
)
def test_faults_say_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SiteError, match=said):
        read_profile(profile(tmp_path, text))


@pytest.mark.parametrize("word", ["no", "yes", "on", "off"])
def test_words_that_yaml_1_1_took_for_truth_values_are_text_as_in_a_recipe(tmp_path: Path, word: str) -> None:
    text = f"scheduler: slurm\naccount: {word}\nenvironment: {{DEBUG: {word}}}\n"
    site = read_profile(profile(tmp_path, text))
    assert (site.account, site.environment) == (word, {"DEBUG": word})
    with pytest.raises(SiteError, match=rf":2 exclusive: must be true or false, not the text '{word}'"):
        read_profile(profile(tmp_path, f"scheduler: slurm\nexclusive: {word}\n"))


def test_a_nested_value_names_its_own_line(tmp_path: Path) -> None:
    text = "scheduler: slurm\ncontainer:\n  runtime: pyxis\n  home: 1\n  mounts:\n    - /a:/a\n    - data\n"
    with pytest.raises(SiteError) as caught:
        read_profile(profile(tmp_path, text))
    first, second = sorted(str(caught.value).splitlines())
    assert "mycluster.yaml:4 container.home: must be true or false" in first
    assert "mycluster.yaml:7 container.mounts[1]: 'data' must be /source:/target" in second


def test_the_shipped_example_is_valid() -> None:
    example = Path(__file__).parents[2] / "launch" / "sites" / "example.yaml"
    assert read_profile(example).container.runtime == "pyxis"


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(SiteError) as caught:
        read_profile(profile(tmp_path, "scheduler: pbs\npartitoin: x\nmodules: 3\n"))
    assert len(str(caught.value).splitlines()) == 3


def test_an_absent_profile_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(
        SiteError,
        match=r"none.yaml: cannot be read \(No such file or directory\); give the path of a site profile file",
    ):
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
