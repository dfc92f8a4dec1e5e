"""The few answers of a W&B server that the real wandb needs to send a run; it keeps what it was sent."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.runs: list[dict[str, Any]] = []
        self.files: dict[str, dict[int, str]] = {}
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def history(self, run: str) -> list[dict[str, Any]]:
        """Rows of a run as the service keeps them: by their place in the file, the last one sent there."""
        return [json.loads(line) for _, line in sorted(self.files.get(run, {}).items())]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that wandb drops when it ends."""


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.bodies.append(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            answer = {"data": self._data(json.loads(body))}
        elif self.path.endswith("/file_stream"):
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            lines = self.server.files.setdefault(self.path.split("/")[-2], {})
            lines.update(enumerate(sent.get("content", []), sent.get("offset", 0)))
        self._answer(answer)

    do_PUT = do_POST  # noqa: N815 - the base class's name

    def do_GET(self) -> None:
        self._answer({})

    def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, given = asked["query"], asked.get("variables", {})
        if "upsertBucket" in query:
            self.server.runs.append(given)
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": given["entity"] or "team"}}
            bucket = {"id": "b", "name": given["name"], "displayName": given["displayName"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}}

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        """Nothing on the screen."""


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
