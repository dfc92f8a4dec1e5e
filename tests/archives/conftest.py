"""The engine's models, to make archives of; nothing of megatron-core's import may warn later."""

from __future__ import annotations

import warnings

from hpclm.engines.megatron.ranks import cpu_standins

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    cpu_standins.install()
    import hpclm.engines.megatron.ranks.tasks  # noqa: F401
