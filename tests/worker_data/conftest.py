"""megatron-core warns while it is imported (no Apex, no Transformer Engine); nothing else may warn."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import hpclm.worker.data.packing
    import hpclm.worker.data.text  # noqa: F401
