"""A server of /v1/chat/completions in a thread: answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server sends. `wait`: it sends nothing before this is set."""

    body: str | bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None


@dataclass
class Asked:
    """A request. `at`: seconds since the server began."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][-1]["content"])


def completion(
    text: str | None, finish_reason: str = "stop", usage: tuple[int, int] | None = (100, 200), model: str = "m"
) -> Answer:
    """A reply as the API gives it."""
    value: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason},
        ],
    }
    if usage is not None:
        value["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(json.dumps(value))


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None, code: str | None = None) -> Answer:
    return Answer(json.dumps({"error": {"message": message, "type": "x", "code": code}}), status, headers or {})


@dataclass
class ChatServer:
    url: str
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def chat_server(answer: Callable[[int, Asked], Answer]) -> Iterator[ChatServer]:
    """`answer` is called with the number of the request, from 0 on, and the request."""
    lock, began = threading.Lock(), time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = Asked(body, {key.lower(): value for key, value in self.headers.items()}, time.monotonic() - began)
            with lock:
                number = len(served.asked)
                served.asked.append(asked)
            given = answer(number, asked) if self.path == "/v1/chat/completions" else refusal(404, "no such path")
            if given.wait is not None:
                given.wait.wait(60)
            data = given.body.encode() if isinstance(given.body, str) else given.body
            try:
                self.send_response(given.status)
                headers = {"content-type": "application/json", **given.headers, "content-length": str(len(data))}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
