"""Models, rows and runs that the tests of engine hf share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from hpclm.core.layout import StagePaths
from tests.support.engine_harness import run
from tests.support.hf_harness import hf_spec, rows_in
from tests.support.hf_models import save_model

with warnings.catch_warnings():
    # what these libraries warn of when they are imported is theirs
    warnings.simplefilter("ignore")
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401


class Workshop:
    """A folder with models and rows; each is made once, and so is each run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = rows_in(folder / "rows")
        self.model: Callable[[str], Path] = cache(lambda kind: save_model(folder / kind, kind))
        self.count = 0
        self.made: dict[str, StagePaths] = {}

    def spec(self, kind: str = "llama", **how: object):  # type: ignore[no-untyped-def]
        """A new stage."""
        self.count += 1
        return hf_spec(self.folder / f"stage-{self.count}", self.model(kind), self.rows, **how)  # type: ignore[arg-type]

    def run(self, kind: str = "llama", **how: object) -> StagePaths:
        """A run to its end; the same one if the same has been asked for."""
        key = repr((kind, sorted(how.items())))
        if key not in self.made:
            self.made[key] = run(self.spec(kind, **how))
        return self.made[key]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("hf"))
