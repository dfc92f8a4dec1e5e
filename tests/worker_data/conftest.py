"""megatron-core warns while it is imported (no Apex, no Transformer Engine); nothing else may warn."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import hpclm.data.ranks.gpt_datasets
    import hpclm.data.ranks.packing  # noqa: F401
