"""Nothing of megatron-core's import may warn later, when warnings are errors."""

from __future__ import annotations

import warnings

from hpclm.worker.engine import cpu

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core says that Apex and Transformer Engine are absent
    cpu.install()
    import hpclm.worker.tasks  # noqa: F401 - all that warns when imported, imported here
