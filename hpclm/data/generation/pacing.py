"""When the next request may start: so many a minute, so many tokens a minute, never while the server asks to wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pacer:
    """Spreads the starts of requests evenly, for many threads. A minute's limit holds for every minute, and there is no
    burst at its beginning, which endpoints that count seconds would refuse.

    Args:
        requests, tokens: a minute; None: no limit.
    """

    def __init__(
        self, requests: float | None, tokens: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.request_s = 60 / requests if requests else 0.0
        self.token_s = 60 / tokens if tokens else 0.0
        self.clock = clock
        self.lock = threading.Lock()
        self.next_request = self.next_token = self.held_until = clock()

    def take(self, tokens: float) -> float:
        """The time at which a request of about so many tokens may start."""
        with self.lock:
            start = max(self.clock(), self.next_request, self.next_token, self.held_until)
            self.next_request = start + self.request_s
            self.next_token = start + tokens * self.token_s
            return start

    def correct(self, expected: float, used: float) -> None:
        """A request took another number of tokens than was expected."""
        with self.lock:
            self.next_token += (used - expected) * self.token_s

    def hold(self, seconds: float) -> None:
        """Start nothing for so long: the server said so."""
        with self.lock:
            self.held_until = max(self.held_until, self.clock() + seconds)

    def wait(self, tokens: float, stop: threading.Event) -> bool:
        """Wait for the turn of a request; whether it may start, which it may not after `stop`."""
        while True:
            start = self.take(tokens)
            while (left := start - self.clock()) > 0:
                if stop.wait(left):
                    return False
            # those who were waiting when the server asked for time take their turns anew, not all at its end
            if self.held_until <= self.clock():
                return not stop.is_set()
