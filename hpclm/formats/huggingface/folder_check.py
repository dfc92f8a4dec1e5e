"""Whether a fetched folder is whole: every file's digest, every shard of the index, every header. No network."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from hpclm.core.errors import CheckpointError
from hpclm.core.records import read_record
from hpclm.formats.huggingface.architectures import ADAPTER, ADAPTER_CONFIG, read_config
from hpclm.formats.huggingface.hub_files import HubFile, is_digest
from hpclm.formats.huggingface.hub_transfer import digest_of
from hpclm.formats.huggingface.weights import INDEX, SINGLE, index_files
from hpclm.formats.safetensors_header import declared_size

# Beside the files of a folder of `--out`; the Hub's cache has the digests in its own names
RECORD = "hpclm-fetch.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class FetchRecord:
    """What a folder was made of: a `kind` (model, dataset), the repository, the commit, the files."""

    kind: str
    repo: str
    revision: str
    files: list[HubFile] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """A folder that is whole. `compared` counts the files whose digest is known here, and agrees."""

    folder: str
    revision: str | None
    files: int
    bytes: int
    compared: int


def record_of(folder: Path) -> FetchRecord | None:
    """Raises CheckpointError for a damaged one."""
    found = read_record(FetchRecord, folder / RECORD)
    if found is None and (folder / RECORD).exists():
        raise CheckpointError(f"{folder / RECORD}: is damaged; remove the folder and fetch it again")
    return found


def check_folder(folder: Path) -> Checked:
    """Raises CheckpointError with everything that is wrong."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; give the one that `model fetch` printed")
    record = record_of(folder)
    expected = {file.name: file for file in record.files} if record else _by_links(folder)
    problems = [words for file in expected.values() if (words := _damage(folder, file))]
    is_data = record.kind == "dataset" if record else folder.parent.parent.name.startswith("datasets--")
    if not is_data:
        known = {words.partition(":")[0] for words in problems}
        problems += [words for words in model_problems(folder) if words.partition(":")[0] not in known]
    if problems:
        again = "fetch again: what is whole is kept" if record is None else "remove the folder and fetch it again"
        raise CheckpointError("\n".join([*problems, f"{folder}: is not whole; {again}"]))
    present = [folder / name for name in expected] or [path for path in folder.rglob("*") if path.is_file()]
    revision = record.revision if record else folder.name if _COMMIT.fullmatch(folder.name) else None
    return Checked(str(folder), revision, len(present), sum(path.stat().st_size for path in present), len(expected))


def _by_links(folder: Path) -> dict[str, HubFile]:
    """The files of a snapshot in the Hub's cache: links to files that are named by their digests. The sizes are those
    of the files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and is_digest(digest := Path(path.readlink()).name):
            name = path.relative_to(folder).as_posix()
            found[name] = HubFile(name, path.stat().st_size if path.exists() else 0, digest)
    return found


def _damage(folder: Path, file: HubFile) -> str | None:
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{path}: has {size:,} bytes, and should have {file.size:,}"
        return None if digest_of(path, file.digest) == file.digest else f"{path}: its content is not the Hub's"
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def model_problems(folder: Path) -> list[str]:
    """What keeps transformers from reading a folder: no configuration, shards that are missing, cut or damaged."""
    problems = []
    names = [next((name for name in (SINGLE, INDEX, ADAPTER) if (folder / name).exists()), SINGLE)]
    try:
        if names != [ADAPTER]:
            read_config(folder)
        elif not (folder / ADAPTER_CONFIG).is_file():
            problems.append(f"{folder / ADAPTER_CONFIG}: is missing")
    except CheckpointError as error:
        problems.append(str(error))
    try:
        if names == [INDEX]:
            names = index_files(folder / INDEX)
    except CheckpointError as error:
        return [*problems, str(error)]
    return [*problems, *(words for name in names if (words := _broken(folder / name)))]


def _broken(path: Path) -> str | None:
    if not path.is_file():
        return f"{path}: is missing"
    try:
        wanted, size = declared_size(path), path.stat().st_size
    except CheckpointError as error:
        return str(error)
    return None if wanted == size else f"{path}: has {size:,} bytes, and its header declares {wanted:,}"
