"""`hpclm model fetch`: a repository of the Hub to this machine, with huggingface_hub, for nodes without a network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hpclm
from hpclm.core.errors import CheckpointError, HpclmError
from hpclm.core.files import read_object
from hpclm.core.locks import exclusive
from hpclm.formats.huggingface import hub_messages
from hpclm.formats.huggingface.architectures import CONFIG
from hpclm.formats.huggingface.destinations import Cache, Destination, Plain, is_there, refuse_existing, refuse_full
from hpclm.formats.huggingface.folder_check import FetchRecord, check_folder, model_problems
from hpclm.formats.huggingface.hub_files import Choice, HubFile, data_files, is_digest, model_files, shards
from hpclm.formats.huggingface.hub_messages import Asked
from hpclm.formats.huggingface.hub_transfer import Progress, Transfer
from hpclm.formats.huggingface.weights import index_files

_NAME = re.compile(r"(?P<repo>(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INFO_TIMEOUT_S = 30.0
# The Hub gives larger files only to its own protocol
_LARGEST = 50 * 1000**3

Show = Callable[[Progress], None]


@dataclass(frozen=True)
class Request:
    """What to fetch: `name` is ORG/NAME[@REVISION], `kind` model or dataset; `out` a folder, or None for the cache."""

    name: str
    kind: str = "model"
    out: Path | None = None
    remote_code: bool = False


@dataclass(frozen=True)
class Fetched:
    """A whole folder: the commit, the number of files and their bytes. `notes` are for the user."""

    folder: str
    revision: str
    files: int
    bytes: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Repository:
    """A repository as the Hub describes it at one commit, and the client to fetch its files with."""

    hub: Any
    asked: Asked
    commit: str
    files: list[HubFile]
    headers: dict[str, str]

    def get(self, file: HubFile, stream: Any, have: int) -> None:
        from huggingface_hub.file_download import http_get

        http_get(
            self.hub.hf_hub_url(self.asked.repo, file.name, repo_type=self.asked.kind, revision=self.commit),
            stream,
            resume_size=have,
            # a part of a compressed body cannot be continued
            headers={**self.headers, "Accept-Encoding": "identity"},
            expected_size=file.size,
        )

    def link(self, name: str) -> object:
        return self.hub.hf_hub_download(self.asked.repo, name, repo_type=self.asked.kind, revision=self.commit)

    def record(self, files: Any) -> FetchRecord:
        return FetchRecord(self.asked.kind, self.asked.repo, self.commit, list(files))


def fetch(request: Request, show: Show = lambda _: None) -> Fetched:
    """Fetch what is not here yet, and check all of it.

    Raises HpclmError with one message for whatever the Hub, the network or the disk refuses; CheckpointError where the
    repository is no model, has pickles only, or arrived damaged. Interrupted, the next call goes on where it was.
    """
    if request.out is not None:
        refuse_existing(request.out)
    hub = _client()
    asked, headers = _asked(hub, request)
    if hub.constants.HF_HUB_OFFLINE:
        raise HpclmError(hub_messages.offline(asked))
    try:
        return _fetch(_look(hub, asked, headers), request, show)
    except HpclmError:
        raise
    except Exception as error:
        message = hub_messages.told(error, asked, str(request.out or hub.constants.HF_HUB_CACHE))
        if message is None:
            raise
        raise message from None


def _client() -> Any:
    # read when it is imported; its bars and its words of retries would mix with ours
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        import huggingface_hub.utils
    except ImportError as error:
        raise HpclmError(f"fetching needs huggingface_hub ({error}); install hpclm[hub]") from None
    hub: Any = huggingface_hub
    hub.utils.logging.set_verbosity_error()
    return hub


def _asked(hub: Any, request: Request) -> tuple[Asked, dict[str, str]]:
    found = _NAME.fullmatch(request.name)
    revision = (found and found["revision"]) or hub.constants.DEFAULT_REVISION
    if found is None or any(part in ("", ".", "..") for part in revision.split("/")):
        raise HpclmError(f"{request.name!r}: is no name on the Hub; write ORG/NAME or ORG/NAME@REVISION")
    headers: dict[str, str] = hub.utils.build_hf_headers(library_name="hpclm", library_version=hpclm.__version__)
    has_token = any(name.lower() == "authorization" for name in headers)
    return Asked(request.kind, found["repo"], revision, hub.constants.ENDPOINT, has_token), headers


def _look(hub: Any, asked: Asked, headers: dict[str, str]) -> _Repository:
    """Raises what the client raises, HpclmError for a server that tells no digests."""
    info = hub.HfApi().repo_info(
        asked.repo, revision=asked.revision, repo_type=asked.kind, timeout=_INFO_TIMEOUT_S, files_metadata=True
    )
    files = []
    for one in info.siblings or ():
        lfs = one.lfs or {}
        size, digest = lfs.get("size", one.size), lfs.get("sha256", one.blob_id)
        if not isinstance(size, int) or not isinstance(digest, str) or not is_digest(digest):
            raise HpclmError(
                f"{asked.endpoint}: does not tell the size and digest of {one.rfilename}; if it is a mirror that "
                "HF_ENDPOINT names, unset that"
            )
        files.append(HubFile(one.rfilename, size, digest))
    if not isinstance(info.sha, str) or _COMMIT.fullmatch(info.sha) is None:
        raise HpclmError(f"{asked.endpoint}: does not tell the commit of {asked}; try again later")
    return _Repository(hub, asked, info.sha, files, headers)


def _fetch(repository: _Repository, request: Request, show: Show) -> Fetched:
    asked, commit = repository.asked, repository.commit
    if request.kind == "dataset":
        choice = data_files(str(asked), repository.files)
    else:
        choice = model_files(str(asked), repository.files, remote_code=request.remote_code)
    if request.out is not None and is_there(request.out, asked.kind, asked.repo, commit, choice.files):
        checked = check_folder(request.out)
        return Fetched(checked.folder, commit, checked.files, checked.bytes)
    place = _destination(repository, request.out)
    place.place.mkdir(parents=True, exist_ok=True)
    with exclusive(place.place, f"{place.place}: another fetch fills it; wait for that one, or end it"):
        files = _download(repository, choice, place, show)
        notes = [] if request.remote_code else _notes(place.view())
        place.finish(files)
    return Fetched(str(place.folder), commit, len(files), sum(file.size for file in files), notes)


def _destination(repository: _Repository, out: Path | None) -> Destination:
    if out is not None:
        return Plain(out, repository.record)
    asked = repository.asked
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(repository.hub.constants.HF_HUB_CACHE).absolute() / repo_folder_name(
        repo_id=asked.repo, repo_type=asked.kind
    )
    return Cache(storage, repository.commit, asked.revision, repository.link)


def _download(repository: _Repository, choice: Choice, place: Destination, show: Show) -> list[HubFile]:
    """The files, all of them whole. The index comes first, then small files: what is refused is refused at once."""
    asked = repository.asked
    hint = "--out FOLDER, or HF_HOME"
    files = choice.files
    refuse_full(place.place, place.targets(files), hint)
    if choice.index is not None:
        (first,) = place.targets([choice.index])
        Transfer(repository.get, hub_messages.is_network, place.ready).run([first], lambda _: None)
        files = [*files, *shards(str(asked), index_files(place.view() / choice.index.name), repository.files)]
    targets = sorted(place.targets(files), key=lambda target: target.file.size)
    refuse_full(place.place, targets, hint)
    huge = next((one.file.name for one in targets if one.missing and one.file.size > _LARGEST), None)
    if huge is not None:
        raise HpclmError(
            f"{asked}: {huge} is larger than 50 GB, which the Hub gives to its own client only: `hf download "
            f"{asked.repo} {huge} --revision {repository.commit}`, then this command without --out"
        )
    Transfer(repository.get, hub_messages.is_network, place.ready).run(targets, show)
    problems = model_problems(place.view()) if asked.kind == "model" else []
    if problems:
        raise CheckpointError("\n".join([*problems, f"{asked}: its files are as the Hub has them, and not whole"]))
    return files


def _notes(folder: Path) -> list[str]:
    if "auto_map" not in (read_object(folder / CONFIG) or {}):
        return []
    return ["its config.json names code of its own (auto_map), which was not fetched: read it, then use --remote-code"]
