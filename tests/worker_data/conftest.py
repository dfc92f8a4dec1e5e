"""megatron-core warns while it is imported (no Apex, no Transformer Engine); nothing else may warn."""

import os
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import hpclm.worker.data.prompts
    import hpclm.worker.data.text  # noqa: F401


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that the repository does not carry."""
    folder = Path(os.environ.get("HPCLM_TEST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: GPT-2's vocabulary and the assistant set; set HPCLM_TEST_DATA")
    return folder
