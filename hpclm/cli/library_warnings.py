"""What libraries warn their own users of is not for ours."""

from __future__ import annotations

import warnings


def hide() -> None:
    """Warnings of torch, transformers and megatron-core, for the rest of this command."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning)
