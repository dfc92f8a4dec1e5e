"""Requests in threads: each waits for its turn, tries again where that helps, and hands over what came of it."""

from __future__ import annotations

import queue
import random
import threading
from dataclasses import dataclass

from hpclm.data.generation.chat_client import AskError, ChatClient, Reply
from hpclm.data.generation.generation_options import Limits
from hpclm.data.generation.pacing import Pacer

_MAX_BACKOFF_S = 60.0
# English has about four characters a token; a limit is corrected by the endpoint's own count.
_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Ended:
    """What came of a request: a reply, an error, or neither where it was stopped before it began.

    `reserved`: what it might have cost; `failed_tries`: tries without a reply.
    """

    reserved: float
    failed_tries: int
    reply: Reply | None = None
    error: BaseException | None = None


class Asker:
    """Starts requests; `ended` has what came of each. Threads are daemons: nobody waits for a server at exit."""

    def __init__(self, client: ChatClient, limits: Limits, max_tokens: int) -> None:
        self.client, self.limits, self.max_tokens = client, limits, max_tokens
        self.pacer = Pacer(limits.requests_per_minute, limits.tokens_per_minute)
        self.stop = threading.Event()
        self.ended: queue.Queue[Ended] = queue.Queue()

    def most_cost(self, prompt: str) -> float:
        """No request costs more: a token is a byte at least, and a reply has a limit."""
        return self.limits.cost(len(prompt.encode()), self.max_tokens) or 0.0

    def start(self, prompt: str) -> None:
        threading.Thread(target=self._run, args=(prompt,), daemon=True).start()

    def _run(self, prompt: str) -> None:
        try:
            ended = self._asked(prompt)
        except BaseException as error:  # a bug of ours, which the main thread raises
            ended = Ended(self.most_cost(prompt), 0, error=error)
        self.ended.put(ended)

    def _asked(self, prompt: str) -> Ended:
        expected = len(prompt.encode()) / _BYTES_A_TOKEN + self.max_tokens
        reserved, failed = self.most_cost(prompt), 0
        while self.pacer.wait(expected, self.stop):
            try:
                reply = self.client.ask(prompt)
            except AskError as error:
                failed += 1
                if not error.again or failed > self.limits.retries:
                    return Ended(reserved, failed, error=error)
                if error.wait_s is not None:
                    self.pacer.hold(error.wait_s)
                self.stop.wait(self._pause_s(failed, error.wait_s))
            else:
                if reply.prompt_tokens is not None and reply.completion_tokens is not None:
                    self.pacer.correct(expected, reply.prompt_tokens + reply.completion_tokens)
                return Ended(reserved, failed, reply=reply)
        return Ended(reserved, failed)

    def _pause_s(self, failed: int, wait_s: float | None) -> float:
        """Twice as long each time, and not the same for all; where the server says how long, that and a little more."""
        jitter = random.uniform(0.5, 1.0)
        if wait_s is not None:
            return wait_s + jitter * min(self.limits.backoff_s, 0.1 * wait_s)
        return jitter * min(_MAX_BACKOFF_S, self.limits.backoff_s * 2.0 ** (failed - 1))
