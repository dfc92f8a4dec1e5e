"""What is asked for, and of what endpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpclm.core.errors import HpclmError
from hpclm.data.generation.generation_words import USUAL, Filter, LimitKey, Parameter
from hpclm.data.generation.instruction_rows import InstructionRow

_OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. The defaults are those of Stanford Alpaca's script."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 3072
    limit_key: str = LimitKey.max_tokens.value
    stop: list[str] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)

    def arguments(self, tasks: int) -> dict[str, Any]:
        """Of a request for tasks up to this number. `stop` is by default the task after the last: the script's own
        (a line with 20, and "20.") would also end at a year in an answer."""
        every: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "stop": self.stop or [f"\n{tasks + 1}. Instruction:"],
        }
        kept = {key: value for key, value in every.items() if key not in self.omitted}
        if "max_tokens" in kept:
            kept[self.limit_key] = kept.pop("max_tokens")
        return kept


@dataclass(frozen=True)
class Limits:
    """What may not be exceeded. `price_in`, `price_out`: for a million tokens, in any currency, as `max_cost` is.

    `retries`: of one request; `backoff_s`: the first wait, which doubles; `useless_replies`: how many in a row without
    a new row end it.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int = 4
    retries: int = 6
    timeout_s: float = 300.0
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    backoff_s: float = 1.0
    useless_replies: int = 20

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


@dataclass(frozen=True)
class Options:
    """One command. `examples`: seed rows in a prompt; `tasks`: the number of the last task that is asked for."""

    seeds: Path
    out: Path
    count: int
    model: str
    base_url: str | None = None
    examples: int = 3
    tasks: int = 20
    language: str | None = None
    topic: str | None = None
    seed: int = 1234
    filters: list[Filter] = field(default_factory=lambda: list(USUAL))
    drop_words: list[str] = field(default_factory=list)
    least_words: int = 4
    most_words: int = 150
    similarity: float = 0.7
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)

    def fixed(self, rows: Sequence[InstructionRow]) -> dict[str, str]:
        """What decides the rows, by the options' names: the same command may not go on with another. The endpoint, the
        limits and the count may change."""
        sampling = self.sampling
        lines = "".join(row.line() for row in rows)
        values: dict[str, object] = {
            "SEEDS": hashlib.sha256(lines.encode()).hexdigest(),
            "--model": self.model,
            "--examples": self.examples,
            "--tasks": self.tasks,
            "--language": self.language,
            "--topic": self.topic,
            "--seed": self.seed,
            "--filter": sorted(one.value for one in self.filters),
            "--drop-word": sorted(self.drop_words),
            "--min-words": self.least_words,
            "--max-words": self.most_words,
            "--similarity": self.similarity,
            "--temperature": sampling.temperature,
            "--top-p": sampling.top_p,
            "--max-tokens": sampling.max_tokens,
            "--stop": sampling.stop,
            "--omit": sorted(sampling.omitted),
        }
        return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}

    def check(self, rows: Sequence[InstructionRow]) -> None:
        """Raises HpclmError for what cannot be done."""
        if not self.model.strip():
            raise HpclmError("--model is empty; name a model of the endpoint")
        if len(rows) < self.examples:
            raise HpclmError(
                f"{self.seeds}: has {len(rows)} rows, and each prompt shows {self.examples}; "
                "add seed rows, or give a smaller --examples"
            )
        if self.tasks <= self.examples:
            raise HpclmError(
                f"--tasks {self.tasks} is the number of the last task, and --examples {self.examples} come first; "
                "give a larger --tasks"
            )
        if self.least_words > self.most_words:
            raise HpclmError(f"--min-words {self.least_words} is more than --max-words {self.most_words}")
        if self.out.exists() and self.out.samefile(self.seeds):
            raise HpclmError(f"--out {self.out} is the file of the seeds; name another file")
        self._check_numbers()
        self._check_limits()
        self._check_url()

    def _check_numbers(self) -> None:
        sampling, limits = self.sampling, self.limits
        given = {
            "--similarity": self.similarity,
            "--temperature": sampling.temperature,
            "--top-p": sampling.top_p,
            "--requests-per-minute": limits.requests_per_minute,
            "--tokens-per-minute": limits.tokens_per_minute,
            "--timeout": limits.timeout_s,
            "--max-cost": limits.max_cost,
            "--price-in": limits.price_in,
            "--price-out": limits.price_out,
        }
        for name, value in given.items():
            if value is not None and not math.isfinite(value):
                raise HpclmError(f"{name} {value} is no number to calculate with; give a finite one, or leave it out")

    def _check_limits(self) -> None:
        limits = self.limits
        if (limits.price_in is None) != (limits.price_out is None):
            raise HpclmError("--price-in and --price-out go together; give both, for a million tokens")
        if limits.max_cost is None:
            return
        if limits.price_in is None:
            raise HpclmError("--max-cost needs the prices; give --price-in and --price-out, for a million tokens")
        if Parameter.max_tokens.value in self.sampling.omitted:
            raise HpclmError("--max-cost needs a limit of each reply; leave out --omit max_tokens")

    def _check_url(self) -> None:
        if self.base_url is None:
            return
        try:
            parts = urlsplit(self.base_url)
            is_sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_sound = False
        if not is_sound:
            raise HpclmError("--base-url must be an address such as http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query:
            raise HpclmError(
                "--base-url contains a user, a password or a query; leave them out, and put the key into a variable "
                "(--key-env)"
            )

    @property
    def endpoint(self) -> str:
        """For messages: the host alone."""
        return urlsplit(self.url).netloc

    @property
    def url(self) -> str:
        return self.base_url or _OPENAI
