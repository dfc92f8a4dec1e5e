"""What hpclm relies on in submitit, held against every release that pyproject.toml allows."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from packaging.requirements import Requirement

from hpclm.core.errors import SchedulerError
from hpclm.schedulers.slurm import job_script, submitit_adapter
from hpclm.schedulers.slurm.submitit_adapter import render_script
from tests.launch.test_slurm_script import JOB, SITE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# Every release inside the range. A new one is added here when it passes, and the range is what passed.
TRIED = ("1.5.0", "1.5.1", "1.5.2", "1.5.3", "1.5.4")
GOLDEN = "submitit-header.sh"
COMMAND = "export A='x y'\n. /scratch/me/runs/a/payload/launch/supervise.sh"
FOLDER = "/scratch/me/runs/a b/slurm"
# Every parameter that a job script can set (the first test holds that), and values that need quoting.
PARAMETERS: dict[str, Any] = {
    "job_name": "gpt.ptune",
    "comment": "hpclm:gpt-20261120-120000-ab12/ptune/002",
    "time": 240,
    "nodes": 2,
    "ntasks_per_node": 4,
    "cpus_per_task": 8,
    "mem": "4096M",
    "partition": "gpu,gpu-long",
    "account": "project 42",
    "qos": "high",
    "constraint": "a100|h100&ib",
    "exclusive": True,
    "gres": "gpu:a100:4",
    "gpus_per_node": "a100:4",
    "signal_delay_s": 120,
    "stderr_to_stdout": True,
    "wckey": None,
    "use_srun": False,
    "additional_parameters": {
        "output": "/scratch/me/runs/a b/slurm/%j_batch.log",
        "chdir": "/scratch/me/runs/a b",
        "requeue": True,
        "exclude": "node[1-3],node7",
        "array": "0-7%2",
        "reservation": "it's $HOME `x` #1",
    },
}


def test_the_contract_covers_every_parameter_a_script_sets() -> None:
    requests: tuple[Literal["gpus-per-node", "gres"], ...] = ("gres", "gpus-per-node")
    sites = [dataclasses.replace(SITE, gpu_request=request, qos="high", constraint="ib") for request in requests]
    assert set().union(*(job_script._parameters(JOB, site) for site in sites)) == set(PARAMETERS)


def test_the_installed_release_renders_the_whole_text(golden: Callable[[str, str], None]) -> None:
    golden(GOLDEN, render_script(FOLDER, PARAMETERS, COMMAND))


def test_a_users_own_signal_for_submitit_does_not_reach_our_ranks(
    golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitit.slurm import slurm

    # What SUBMITIT_PREEMPT_SIGNAL=USR1 sets when submitit is imported.
    monkeypatch.setattr(slurm.SlurmJobEnvironment, "USR_SIG", "USR1")
    golden(GOLDEN, render_script(FOLDER, PARAMETERS, COMMAND))


def test_the_parameters_are_left_as_they_were() -> None:
    before = json.dumps(PARAMETERS)
    render_script(FOLDER, PARAMETERS, COMMAND)
    assert json.dumps(PARAMETERS) == before


def test_nothing_but_the_adapter_imports_submitit() -> None:
    importers = set()
    for path in (ROOT / "hpclm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.split(".")[0] == "submitit" for name in names):
                importers.add(path.name)
    assert importers == {"submitit_adapter.py"}


def test_submitit_is_not_imported_before_a_script_is_rendered() -> None:
    code = "import sys, hpclm.schedulers.slurm.job_script; sys.exit('submitit' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


# What a release could do to us, as a function that stands in for the private method; and the words that name it.
def without_shebang(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).removeprefix("#!/bin/bash\n")


def without_an_option(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).replace("#SBATCH --mem=4096M\n", "")


def with_another_value(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).replace("--time=240", "--time=5")


def with_an_option_of_its_own(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).replace("#SBATCH --mem", "#SBATCH --error=/tmp/x\n#SBATCH --mem")


def with_options_too_late(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).replace("#SBATCH --account", "export SUBMITIT_X=1\n#SBATCH --account")


def with_a_statement_of_its_own(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).replace("# command\n", "# command\nset -e\n")


def under_srun(executor: Any, command: str, uid: str) -> str:
    return whole(executor, f"srun {command}")


def with_an_epilogue(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command) + "\nrm -rf /scratch\n"


def in_bytes(executor: Any, command: str, uid: str) -> bytes:
    return whole(executor, command).encode()


def with_another_signature(executor: Any, command: str) -> str:
    return whole(executor, command)


def that_fails(executor: Any, command: str, uid: str) -> str:
    raise KeyError("first line\nsecond line")


def with_an_odd_quote(executor: Any, command: str, uid: str) -> str:
    return whole(executor, command).replace("--time=240", "--time='240")


def whole(executor: Any, command: str) -> str:
    from submitit.slurm import slurm

    return str(slurm._make_sbatch_string(command=command, folder=executor.folder, **executor.parameters))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (without_shebang, "its text does not begin with #!"),
        (without_an_option, "its text does not contain the sbatch option --mem=4096M"),
        (with_another_value, "its text does not contain the sbatch option --time=240"),
        (with_an_option_of_its_own, "its text has the sbatch option --error=/tmp/x, which was not requested"),
        (with_options_too_late, "its text does not contain the sbatch option --account=project 42"),
        (with_a_statement_of_its_own, "its text runs 'set -e' before the command"),
        (under_srun, "its text does not end with the command it was given"),
        (with_an_epilogue, "its text does not end with the command it was given"),
        (in_bytes, "its text does not begin with #!"),
        (with_another_signature, "TypeError: with_another_signature() takes 2 positional arguments but 3 were given"),
        (that_fails, r"KeyError: 'first line\nsecond line'"),
        (with_an_odd_quote, "ValueError: No closing quotation"),
    ],
)
def test_a_release_that_changed_is_one_clear_message(
    method: Callable[..., Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitit.slurm import slurm

    monkeypatch.setattr(slurm.SlurmExecutor, "_make_submission_file_text", method)
    assert refusal(monkeypatch) == words


def test_a_release_without_the_method_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.core import core
    from submitit.slurm import slurm

    monkeypatch.delattr(slurm.SlurmExecutor, "_make_submission_file_text")
    monkeypatch.delattr(core.PicklingExecutor, "_make_submission_file_text")
    monkeypatch.setattr(core.PicklingExecutor, "__abstractmethods__", frozenset())
    monkeypatch.setattr(slurm.SlurmExecutor, "__abstractmethods__", frozenset())
    assert (
        refusal(monkeypatch) == "AttributeError: 'OfflineExecutor' object has no attribute '_make_submission_file_text'"
    )


def test_a_release_without_a_parameter_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.slurm import slurm

    known = {key: None for key in PARAMETERS if key != "use_srun"}
    monkeypatch.setattr(slurm, "_get_default_parameters", lambda: known)
    assert refusal(monkeypatch) == "ValueError: Unavailable parameter(s): ['use_srun']"


def test_an_absent_submitit_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit.slurm", None)
    assert refusal(monkeypatch).startswith("ModuleNotFoundError: ")


def test_outside_an_installed_hpclm_the_message_points_at_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert submitit_adapter._message("why") == (
        "submitit (not installed) cannot make the job script hpclm needs: why; "
        "install a submitit that hpclm's pyproject.toml allows with pip"
    )


def refusal(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the message says is wrong; the rest of it is the same for all."""
    requires = ["rich<16,>=13.7", "submitit<8,>=7.1", 'submitit<9; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    with pytest.raises(SchedulerError) as raised:
        render_script(FOLDER, PARAMETERS, COMMAND)
    found = re.fullmatch(
        r"submitit 9\.9 cannot make the job script hpclm needs: (.*); install 'submitit>=7\.1,<8' with pip",
        str(raised.value),
    )
    assert found, raised.value
    return found[1]


def allowed() -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "submitit"]
    return pin


def test_every_release_tried_is_one_that_is_allowed() -> None:
    assert [version for version in TRIED if version not in allowed().specifier] == []


@pytest.mark.slow
def test_every_release_allowed_is_one_that_is_tried() -> None:
    listed = pip("index", "versions", "submitit")
    found = re.search(r"^Available versions: (.*)$", listed, re.MULTILINE)
    assert found, f"pip index versions says nothing of submitit's versions: {listed}"
    untried = [version for version in found[1].split(", ") if version in allowed().specifier and version not in TRIED]
    assert untried == [], "submitit has releases that pyproject.toml allows and nobody tried: add them to TRIED"


@pytest.mark.slow
@pytest.mark.parametrize("version", TRIED)
def test_an_allowed_release_renders_the_same_text(
    version: str, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    pip("install", "--quiet", "--no-deps", "--target", str(tmp_path), f"submitit=={version}")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RENDER],
        input=json.dumps([FOLDER, PARAMETERS, COMMAND]),
        capture_output=True,
        text=True,
        # A user's setting for submitit's own jobs; hpclm's ranks are warned by USR2 whatever it says.
        env={**os.environ, "PYTHONPATH": path, "SUBMITIT_PREEMPT_SIGNAL": "USR1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["version"] == version
    assert Path(answer["file"]).is_relative_to(tmp_path)
    golden(GOLDEN, answer["text"])


# pkg_resources is hidden: releases before 1.5.4 import it in parts we do not use, and Python 3.12 no longer brings it.
RENDER = """
import json, sys
sys.modules["pkg_resources"] = None
from hpclm.schedulers.slurm.submitit_adapter import render_script
text = render_script(*json.load(sys.stdin))
import submitit
print(json.dumps({"version": submitit.__version__, "file": submitit.__file__, "text": text}))
"""


def pip(*arguments: str) -> str:
    """What pip answers. A package index that cannot be reached is a failure, not a skip: then nothing was tried."""
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.fail(
            f"pip {' '.join(arguments)} failed, so this release of submitit was not tried; "
            f"is the package index within reach? {' '.join(errors) or done.stderr[-500:]}",
            pytrace=False,
        )
    return done.stdout
