"""What the ranks run: pure Python copied into the run, so that an image needs an engine and nothing of ours.

A run keeps the code it was submitted with, whatever happens to the checkout afterwards.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from hpclm.core.errors import HpclmError
from hpclm.core.shipped import launch_folder

PACKAGES = ("hpclm",)
# Asks the driver on the nodes; a cluster without GPUs does without.
_OPTIONAL = ("pynvml",)
SUPERVISE = "supervise.sh"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "tests", "test_*.py", "conftest.py")


def stage_payload(target: Path) -> None:
    """Copy the packages, and the shell that starts them, to `target`. Raises HpclmError when one is not installed."""
    target.mkdir(parents=True)
    (target / "launch").mkdir()
    shutil.copyfile(launch_folder() / SUPERVISE, target / "launch" / SUPERVISE)
    for name in (*PACKAGES, *_OPTIONAL):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            if name in _OPTIONAL:
                continue
            raise HpclmError(f"{name} is not installed; mend with `pip install hpclm`")
        origin = Path(spec.origin)
        if spec.submodule_search_locations:
            shutil.copytree(origin.parent, target / name, ignore=_LEFT_OUT)
        else:
            shutil.copyfile(origin, target / origin.name)
