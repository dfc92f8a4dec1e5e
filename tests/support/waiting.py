"""Waiting for what other processes do, with a limit that a busy machine does not reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.processes import LIMIT_S

T = TypeVar("T")


def wait_until(
    what: str,
    condition: Callable[[], T],
    *,
    limit_s: float = LIMIT_S,
    seen: Callable[[], object] | None = None,
    pause_s: float = 0.05,
) -> T:
    """Ask again and again until `condition` gives something true, and return that.

    At the limit the test fails with `what` was waited for and what was `seen` last (default: what the condition gave).
    """
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s:g} s for {what}; seen last: {seen() if seen else found!r}")
        time.sleep(pause_s)
    return found
