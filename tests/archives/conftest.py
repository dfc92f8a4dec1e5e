"""The engine's models, to make archives of; nothing of megatron-core's import may warn later."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from hpclm.engines.megatron.ranks import cpu_standins

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cpu_standins.install()
    import hpclm.engines.megatron.ranks.tasks  # noqa: F401
