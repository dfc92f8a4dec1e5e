"""A small Hub on this machine: what the real huggingface_hub asks of the real one, over HTTP, with its faults.

Large files lie on a second server, as on the real Hub: the first one's answer leads there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.processes import LIMIT_S

_LARGE = (".safetensors", ".bin", ".gguf", ".parquet", ".h5")


@dataclass
class Repository:
    """A repository with one commit. `sizes`: what the Hub says instead of the truth. `accepted`: tokens that may read
    it, or None where everyone may."""

    files: dict[str, bytes]
    kind: str = "models"
    accepted: set[str] | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        text = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in self.files.items()})
        return hashlib.sha1(text.encode()).hexdigest()

    def digest(self, name: str) -> str:
        data = self.files[name]
        if name.endswith(_LARGE):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def info(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            size = self.sizes.get(name, len(data))
            one = {"rfilename": name, "size": size, "blobId": hashlib.sha1(data).hexdigest()}
            if name.endswith(_LARGE):
                one["lfs"] = {"sha256": self.digest(name), "size": size, "pointerSize": 134}
            else:
                one["blobId"] = self.digest(name)
            siblings.append(one)
        return {"_id": "1", "id": repo, "sha": self.commit, "private": False, "tags": [], "siblings": siblings}


@dataclass
class Asked:
    """A request that came in: to which server, and its headers in lower case."""

    server: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Hub:
    """The servers' state; tests put repositories in, and faults by the name of a file.

    Attributes:
        tokens: that exist.
        cut: after how many bytes the connection ends, and how often that happens.
        corrupt: how often a body arrives with one byte changed.
        hold: after how many bytes an answer waits until the test is over; `held` is set when it does.
        down: every answer is HTTP 503.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    cut: dict[str, list[int]] = field(default_factory=dict)
    corrupt: dict[str, int] = field(default_factory=dict)
    hold: dict[str, int] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    down: bool = False
    asked: list[Asked] = field(default_factory=list)
    address: str = ""
    storage: str = ""

    def bodies(self) -> list[Asked]:
        """The requests for the content of a file."""
        return [one for one in self.asked if one.method == "GET" and "/api/" not in one.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    name: str

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.name, self.command, path, headers))
        if self.hub.down:
            self._send(503, b"")
        elif path.startswith("/api/"):
            kind, org, name, _, revision = path.removeprefix("/api/").split("/", 4)
            repository = self._found(kind, f"{org}/{name}", revision)
            if repository:
                self._send(200, json.dumps(repository.info(f"{org}/{name}")).encode())
        else:
            is_data = path.startswith("/datasets/")
            org, name, _, revision, file = path.removeprefix("/datasets").strip("/").split("/", 4)
            repository = self._found("datasets" if is_data else "models", f"{org}/{name}", revision)
            if repository and self._may_read(repository):
                self._file(repository, file)

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _found(self, kind: str, repo: str, revision: str) -> Repository | None:
        found = self.hub.repositories.get(repo)
        if self.name == "storage":
            return found
        if self._token() is not None and self._token() not in self.hub.tokens:
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif found is None or found.kind != kind:
            self._send(404 if self._token() else 401, b"{}", {"X-Error-Code": "RepoNotFound"} if self._token() else {})
        elif revision not in ("main", "refs/pr/1", found.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            return found
        return None

    def _may_read(self, repository: Repository) -> bool:
        if self.name == "storage" or repository.accepted is None or self._token() in repository.accepted:
            return True
        self._send(403 if self._token() else 401, b"{}", {"X-Error-Code": "GatedRepo"})
        return False

    def _file(self, repository: Repository, file: str) -> None:
        if file not in repository.files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = repository.files[file]
        headers = {"ETag": f'"{repository.digest(file)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if file.endswith(_LARGE) and self.name == "hub":
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
            self._send(302, b"", {**headers, "Location": self.hub.storage + self.path})
            return
        if self.command == "GET" and self.hub.corrupt.get(file, 0) > 0:
            self.hub.corrupt[file] -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if start else 200, data[start:], headers, file)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, file: str = "") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, hold = self.hub.cut.get(file), self.hub.hold.get(file)
        if cut and cut[1] > 0 and len(body) > cut[0]:
            cut[1] -= 1
            self.wfile.write(body[: cut[0]])
            self.close_connection = True
        elif hold is not None and len(body) > hold:
            self.wfile.write(body[:hold])
            self.wfile.flush()
            self.hub.held.set()
            self.hub.over.wait(LIMIT_S)
            self.close_connection = True
        else:
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # a client that was killed


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub, empty at first, until the end of the block."""
    hub = Hub()
    servers = []
    for name in ("hub", "storage"):
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "name": name}))
        setattr(hub, "address" if name == "hub" else "storage", f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
    try:
        yield hub
    finally:
        hub.over.set()
        for server in servers:
            server.shutdown()
            server.server_close()
