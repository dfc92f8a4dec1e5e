"""megatron-core is imported here, so that what it warns of is no error in a test."""

from __future__ import annotations

import tests.support.quiet_megatron  # noqa: F401
