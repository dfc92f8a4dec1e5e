"""megatron-core imported once, for what it and its parts warn of would be errors in tests."""

from __future__ import annotations

import warnings

from hpclm.engines.megatron.ranks import cpu_standins

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core says that Apex and Transformer Engine are absent
    cpu_standins.install()
    import hpclm.engines.megatron.ranks.tasks  # noqa: F401 - all that warns when imported, imported here
