"""What the Hub's client raises, as one message: what is wrong with which repository, and what to do about it.

Classes are told by their names: huggingface_hub raises those of requests up to 0.x, and of httpx from 1.0 on.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from hpclm.core.errors import HpclmError
from hpclm.core.secrets import masked
from hpclm.core.storage import is_full

_NETWORK = {
    "ConnectionError",
    "NetworkError",
    "TimeoutException",
    "Timeout",
    "ProtocolError",
    "ProxyError",
    "ChunkedEncodingError",
    "TransportError",
}


@dataclass(frozen=True)
class Asked:
    """What was asked for: a `kind` (model, dataset), the repository's name, its revision, the Hub's address and whether
    a token is sent."""

    kind: str
    repo: str
    revision: str
    endpoint: str
    has_token: bool

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"


def is_network(error: BaseException) -> bool:
    """Whether the connection failed, rather than the request."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "HfHubHTTPError" in names or "OfflineModeIsEnabled" in names:
        return False
    # the client's own words for a body of another length are a bare OSError
    is_cut = type(error) is OSError and error.errno is None
    return bool(names & _NETWORK) or isinstance(error, socket.gaierror) or is_cut


def told(error: BaseException, asked: Asked, folder: str) -> HpclmError | None:
    """The message for an error of the client or of the disk; None for a bug."""
    if is_full(error):
        return HpclmError(f"{folder}: no space is left; make room, then the same command goes on where it was")
    for one in _chain(error):
        words = _words(one, asked)
        if words is not None:
            return HpclmError(masked(words))
    if {cls.__name__ for cls in type(error).__mro__} & {"EntryNotFoundError", "FileMetadataError"}:
        return HpclmError(masked(f"{asked.endpoint}: does not answer as the Hub does; is HF_ENDPOINT right?"))
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _words(error: BaseException, asked: Asked) -> str | None:
    names = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "OfflineModeIsEnabled" in names:
        return offline(asked)
    if "GatedRepoError" in names:
        return _gated(asked)
    if "DisabledRepoError" in names:
        return f"{asked}: its owner or the Hub has disabled it; see {asked.page}"
    if "RevisionNotFoundError" in names:
        return (
            f"{asked.repo}: has no revision {asked.revision!r}; a branch, a tag or a whole commit is needed: see "
            f"{asked.page}/tree/main"
        )
    if "RepositoryNotFoundError" in names:
        return _unknown(asked)
    if "HfHubHTTPError" in names:
        return _refused(status, asked)
    if is_network(error):
        return (
            f"{asked.endpoint}: cannot be reached ({type(error).__name__}). Nodes of a cluster are often without a "
            "network: run this on a login node, and set https_proxy if the site has a proxy; what has arrived stays, "
            "and the same command goes on where it was"
        )
    return None


def offline(asked: Asked) -> str:
    name = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return f"{asked}: cannot be fetched while {name} is set: run `env -u {name} hpclm …` where there is a network"


def _token() -> str:
    named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    return f"the token in {named}" if named else "the token of `hf auth login`"


def _gated(asked: Asked) -> str:
    if asked.has_token:
        return (
            f"{asked}: {_token()} has no access to this gated {asked.kind}: its account must have been accepted at "
            f"{asked.page}, and a fine-grained token needs the permission to read gated repositories"
        )
    return (
        f"{asked}: is gated. Accept its terms at {asked.page}, then set HF_TOKEN to a token of that account (or run "
        "`hf auth login`) and try again"
    )


def _unknown(asked: Asked) -> str:
    rest = (
        f"or it is private and {_token()} may not read it"
        if asked.has_token
        else "or it is private: set HF_TOKEN to a token that may read it"
    )
    return f"{asked.repo}: no such {asked.kind} at {asked.endpoint} (names are case-sensitive), {rest}"


def _refused(status: int | None, asked: Asked) -> str:
    if status == 404 or (status == 401 and not asked.has_token):
        return _unknown(asked)
    if status == 401:
        return f"{asked}: {_token()} is not valid: expired, revoked, or incomplete; make a new one or unset it"
    if status == 403:
        return f"{asked}: {_token() if asked.has_token else 'a request without a token'} is refused; see {asked.page}"
    if status == 429:
        return f"{asked.endpoint}: too many requests from this address; wait some minutes, the same command goes on"
    return f"{asked.endpoint}: answers with HTTP {status}; try again later, the same command goes on where it was"
