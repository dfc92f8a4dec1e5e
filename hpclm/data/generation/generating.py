"""Rows until there are as many as asked for, or until a limit."""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpclm.core.locks import exclusive
from hpclm.data.generation.asking import Asker, Ended
from hpclm.data.generation.chat_client import AskError, ChatClient, Reply
from hpclm.data.generation.generation_options import Options
from hpclm.data.generation.instruction_rows import InstructionRow, read_rows
from hpclm.data.generation.ledger import Ledger, state_path
from hpclm.data.generation.reply_parsing import parse_reply
from hpclm.data.generation.row_filters import RowFilters
from hpclm.data.generation.task_prompt import drawn, make_prompt
from hpclm.data.rows import MAX_LINE_BYTES

_POLL_S = 0.5
MALFORMED, TRUNCATED, SURPLUS = "malformed", "truncated", "surplus"


@dataclass(frozen=True)
class Progress:
    """How far it is. `cost`: None without prices; `under_way`: requests."""

    rows: int
    count: int
    replies: int
    tokens: int
    cost: float | None
    dropped: int
    under_way: int
    seconds: float


@dataclass(frozen=True)
class Made:
    """What was made, by all commands of this file together but for `new_rows`.

    `dropped`: rows left out by each filter, and `malformed`, `truncated` (cut off at a reply's limit) and `surplus`;
    `uncounted_replies`: without a number of tokens; `ended_by`: why there are fewer rows than asked for.
    """

    out: str
    state: str
    rows: int
    new_rows: int
    count: int
    requests: int
    replies: int
    failed_tries: int
    uncounted_replies: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    dropped: dict[str, int]
    seconds: float
    ended_by: str | None


class Generation:
    """One command's work.

    Args:
        key: of the endpoint; it is sent there and written nowhere.
    """

    def __init__(self, options: Options, key: str, on_progress: Callable[[Progress], None]) -> None:
        self.options, self.on_progress = options, on_progress
        self.seeds = read_rows(options.seeds)
        options.check(self.seeds)
        self.asker = Asker(ChatClient(options, key), options.limits, options.sampling.max_tokens)
        self.under_way, self.reserved, self.useless = 0, 0.0, 0
        self.ended_by: str | None = None
        self.began = time.monotonic()

    def run(self) -> Made:
        """Raises HpclmError where it cannot begin, and KeyboardInterrupt with everything saved that has arrived."""
        out = self.options.out
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with exclusive(out, f"{out}: another process is making these rows; wait for it, or name another --out"):
                self._open()
                try:
                    self._work()
                finally:
                    # also after an interrupt: what has been paid for is kept
                    self._take_arrived()
                    self._count_time()
                    self.ledger.note()
        finally:
            self.asker.stop.set()
            self.asker.client.close()
        return self._made()

    def _open(self) -> None:
        options = self.options
        self.ledger = Ledger(options.out, options.fixed(self.seeds))
        self.counts = self.ledger.counts
        self.rows_before, self.seconds_before = self.ledger.state.rows, self.counts.seconds
        words = (options.least_words, options.most_words)
        self.filters = RowFilters(options.filters, words, options.drop_words, options.similarity)
        for row in (*self.seeds, *self.ledger.rows):
            self.filters.add(row)
        self.ledger.rows.clear()

    def _work(self) -> None:
        while True:
            self._start_more()
            if not self.under_way:
                return
            with contextlib.suppress(queue.Empty):
                self._take(self.asker.ended.get(timeout=_POLL_S))
            self.on_progress(self._progress())

    @property
    def missing(self) -> int:
        return max(0, self.options.count - self.ledger.state.rows)

    def _start_more(self) -> None:
        """Start requests, no more than the missing rows need by what replies have given so far."""
        options, limits = self.options, self.options.limits
        # the first reply counts as one that gave everything
        each = max(1.0, (self.ledger.state.rows + options.tasks - options.examples) / (self.counts.replies + 1))
        wanted = min(limits.concurrency, math.ceil(self.missing / each))
        while self.ended_by is None and self.under_way < wanted:
            examples = drawn(self.seeds, options.examples, options.seed, self.counts.requests)
            prompt = make_prompt(examples, options.tasks, options.language, options.topic)
            most = self.asker.most_cost(prompt)
            if limits.max_cost is not None and self._cost() + self.reserved + most > limits.max_cost:
                if not self.under_way:
                    self.ended_by = (
                        f"the budget is used up: {self._cost():.4f} of --max-cost {limits.max_cost:g} spent, and "
                        f"the next request may cost {most:.4f}"
                    )
                return
            self.counts.requests += 1
            self.under_way += 1
            self.reserved += most
            self.asker.start(prompt)

    def _cost(self) -> float:
        return self.options.limits.cost(self.counts.prompt_tokens, self.counts.completion_tokens) or 0.0

    def _take_arrived(self) -> None:
        while True:
            try:
                self._take(self.asker.ended.get_nowait())
            except queue.Empty:
                return

    def _take(self, ended: Ended) -> None:
        """What came of a request. Raises what it raised, unless that is the endpoint's failure."""
        self.under_way -= 1
        self.reserved -= ended.reserved
        self.counts.failed_tries += ended.failed_tries
        if ended.error is not None:
            if not isinstance(ended.error, AskError):
                raise ended.error
            self._end(str(ended.error))
        elif ended.reply is not None:
            self._take_reply(ended.reply)

    def _end(self, reason: str) -> None:
        """Start no more, and try nothing again; replies that are under way are still taken."""
        self.ended_by = self.ended_by or reason
        self.asker.stop.set()

    def _take_reply(self, reply: Reply) -> None:
        counts, limits = self.counts, self.options.limits
        counts.replies += 1
        counts.prompt_tokens += reply.prompt_tokens or 0
        counts.completion_tokens += reply.completion_tokens or 0
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            counts.uncounted += 1
            if limits.max_cost is not None:
                self._end("the endpoint does not count tokens, so that --max-cost cannot be kept; leave it out")
        kept = self._kept(reply)
        self._count_time()
        self.ledger.add(kept)
        self.useless = 0 if kept else self.useless + 1
        if not self.missing:
            self.asker.stop.set()
        elif self.useless >= limits.useless_replies:
            self._end(
                f"{self.useless} replies in a row gave no new row; more seed rows, another --model or --topic, or "
                "other filters may help"
            )

    def _kept(self, reply: Reply) -> Sequence[InstructionRow]:
        parsed = parse_reply(reply.text, reply.finish_reason)
        self.counts.drop(MALFORMED, parsed.malformed)
        self.counts.drop(TRUNCATED, int(parsed.truncated))
        kept: list[InstructionRow] = []
        for row in parsed.rows:
            if len(kept) == self.missing:
                self.counts.drop(SURPLUS)
                continue
            if len(row.line().encode()) > MAX_LINE_BYTES:
                self.counts.drop(MALFORMED)
                continue
            reason = self.filters.dropped_by(row)
            if reason is None:
                self.filters.add(row)
                kept.append(row)
            else:
                self.counts.drop(reason)
        return kept

    def _count_time(self) -> None:
        self.counts.seconds = self.seconds_before + time.monotonic() - self.began

    def _progress(self) -> Progress:
        counts, cost = self.counts, self.options.limits.cost
        tokens = counts.prompt_tokens + counts.completion_tokens
        return Progress(
            self.ledger.state.rows,
            self.options.count,
            counts.replies,
            tokens,
            cost(counts.prompt_tokens, counts.completion_tokens),
            sum(counts.dropped.values()),
            self.under_way,
            time.monotonic() - self.began,
        )

    def _made(self) -> Made:
        counts = self.counts
        return Made(
            out=str(self.options.out),
            state=str(state_path(self.options.out)),
            rows=self.ledger.state.rows,
            new_rows=self.ledger.state.rows - self.rows_before,
            count=self.options.count,
            requests=counts.requests,
            replies=counts.replies,
            failed_tries=counts.failed_tries,
            uncounted_replies=counts.uncounted,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            cost=self.options.limits.cost(counts.prompt_tokens, counts.completion_tokens),
            dropped=dict(sorted(counts.dropped.items(), key=lambda one: -one[1])),
            seconds=counts.seconds,
            ended_by=self.ended_by if self.missing else None,
        )
