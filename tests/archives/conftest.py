"""The engine's models, to make archives of; nothing of megatron-core's import may warn later."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from hpclm.worker.engine import cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cpu.install()
    import hpclm.worker.tasks  # noqa: F401
