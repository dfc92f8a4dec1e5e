"""One request to /chat/completions by the openai client, and what its answer or its failure means."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from hpclm.core.errors import HpclmError
from hpclm.core.secrets import masked
from hpclm.data.generation.generation_options import Options

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# What the client sends where an endpoint needs no key; it cannot send none.
_NO_KEY = "none"
# Shorter ones are words such as EMPTY, for a server that wants any; rows may well contain these.
_LEAST_KEY = 8
_AGAIN = (408, 409, 425, 429)
_SHOWN = 300
# A server that asks for a longer wait is one for another day.
MAX_WAIT_S = 600.0


@dataclass(frozen=True)
class Reply:
    """A reply's text. Tokens are None where the endpoint does not count them."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class AskError(Exception):
    """A request failed. `again`: whether another try may help; `wait_s`: how long the server asks to wait before."""

    def __init__(self, message: str, *, again: bool, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.again, self.wait_s = again, wait_s


class Redactor:
    """Takes a key out of texts: of messages, and of what a model answers."""

    def __init__(self, key: str) -> None:
        forms = {key, quote(key, safe=""), json.dumps(key)[1:-1]} if len(key) >= _LEAST_KEY else set()
        self.forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for form in self.forms:
            text = text.replace(form, "***")
        return text


def key_from(variable: str | None, base_url: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The key, from the environment. None is needed for an address of one's own. Raises HpclmError."""
    name = variable or DEFAULT_KEY_VARIABLE
    key = environment.get(name, "").strip()
    if not key:
        if variable is None and base_url is not None:
            return _NO_KEY
        raise HpclmError(
            f"the variable {name} is not set; set it to the key of the endpoint (--key-env NAME for another)"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise HpclmError(f"the variable {name} holds no key: it has spaces, or characters that no key has")
    return key


class ChatClient:
    """Asks one model of one endpoint. For many threads. Raises HpclmError where openai is missing."""

    def __init__(self, options: Options, key: str) -> None:
        try:
            import openai
        except ImportError:
            raise HpclmError("generating rows needs the package openai; install hpclm[generate]") from None
        self.openai, self.options, self.redacted = openai, options, Redactor(key)
        # tries are ours, so that each waits for its turn
        self.client = openai.OpenAI(api_key=key, base_url=options.url, timeout=options.limits.timeout_s, max_retries=0)
        self.arguments = options.sampling.arguments(options.tasks)

    def close(self) -> None:
        self.client.close()

    def ask(self, prompt: str) -> Reply:
        """Raises AskError; its message does not contain the key."""
        messages: Any = [{"role": "user", "content": prompt}]
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model=self.options.model, messages=messages, **self.arguments
            )
            text = raw.http_response.text
        except self.openai.APIStatusError as error:
            raise self._refused(error) from None
        except self.openai.APITimeoutError:
            raise AskError(
                f"{self.options.endpoint} did not answer within {self.options.limits.timeout_s:g} s (--timeout)",
                again=True,
            ) from None
        except self.openai.OpenAIError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise AskError(self._plain(f"{self.options.endpoint}: {error}{cause}"), again=True) from None
        except (ValueError, TypeError, AttributeError) as error:  # of bytes that no decoder takes
            raise AskError(self._plain(f"{self.options.endpoint}: {error}"), again=True) from None
        return self._reply(text)

    def _plain(self, text: str) -> str:
        """First without the key, then cut: half of a key is one too."""
        text = masked(self.redacted(" ".join(text.split())))
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

    def _refused(self, error: Any) -> AskError:
        status, body, headers = int(error.status_code), error.body, error.response.headers
        told = body.get("message") if isinstance(body, dict) else None
        what = told if isinstance(told, str) else str(error.message)
        message = f"{self.options.endpoint} answered {status}: {self._plain(what)}"
        if status in (401, 403):
            return AskError(f"{message}; check the key in its variable (--key-env)", again=False)
        again = (status in _AGAIN or status >= 500) and error.code != "insufficient_quota"
        wait_s = retry_after(headers)
        if again and wait_s is not None and wait_s > MAX_WAIT_S:
            return AskError(f"{message}; it asks to wait {wait_s:,.0f} s", again=False)
        return AskError(message, again=again, wait_s=wait_s)

    def _reply(self, text: str) -> Reply:
        try:
            value = json.loads(text)
            choice = value["choices"][0]
            content, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise AskError(
                f"{self.options.endpoint} answered with something else than a chat completion: {self._plain(text)}; "
                "check --base-url, which often ends with /v1",
                again=True,
            ) from None
        usage = value.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        # half of a surrogate pair, which JSON may name, is not a character
        plain = content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
        return Reply(
            self.redacted(plain),
            reason if isinstance(reason, str) else None,
            _count(counts.get("prompt_tokens")),
            _count(counts.get("completion_tokens")),
        )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How long a server asks to wait, in seconds: retry-after-ms, or Retry-After as a number or a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return None
