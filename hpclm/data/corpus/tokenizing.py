"""`hpclm data tokenize`: a corpus tokenised by many processes of one machine; killed, it goes on where it was."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedArray
from typing import Any

from hpclm.core.corpus_spec import CorpusSpec
from hpclm.core.errors import DataError, HpclmError
from hpclm.core.indexed_files import bin_path, idx_path
from hpclm.core.locks import exclusive
from hpclm.core.records import from_dict, to_dict
from hpclm.core.sealed import read_sealed, write_sealed
from hpclm.data.corpus.job import Job, Worker, make_job
from hpclm.data.corpus.parts import merge
from hpclm.data.corpus.tokenized_record import Counts, Tokenized
from hpclm.formats.indexed_dataset import read_header

_POLL_S = 0.5
_FIELDS = 3  # bytes, documents, tokens
# of the libraries
THREADS = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Progress:
    """How far it is. `size`: bytes of input in all; `reused`: of them done in an earlier call."""

    bytes: int
    size: int
    documents: int
    tokens: int
    seconds: float
    reused: int

    @property
    def rate(self) -> float:
        """Bytes a second in this call."""
        return (self.bytes - self.reused) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return (self.size - self.bytes) / self.rate if self.rate > 0 else None


def tokenize(spec: CorpusSpec, workers: int, on_progress: Callable[[Progress], None]) -> tuple[Tokenized, list[str]]:
    """Tokenise a corpus into indexed data sets. Returns the record, and notes for people.

    The same call again goes on with the parts that are not complete; once all is made it returns what is known.

    Raises DataError for bad input, an empty result, and outputs that something else has made.
    """
    began = time.monotonic()
    job = make_job(spec)
    known = made_before(job)
    if known is not None:
        return known, ["was made by an earlier call, and nothing has changed since"]
    make_folder(spec)
    with exclusive(spec.parts_folder, f"{spec.parts_folder}: another process is tokenising to this prefix"):
        done = [job.part(number).counts() for number in range(len(job.pieces))]
        counts = _run(job, done, workers, on_progress, began)
        return finish(job, counts, time.monotonic() - began, before=_sum(done).text_bytes), job.notes


def make_folder(spec: CorpusSpec) -> None:
    """The folder of the parts, beside the output. Raises DataError."""
    try:
        spec.parts_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{spec.parts_folder}: cannot be made ({error.strerror})") from error


def finish(
    job: Job, counts: Counts, seconds: float, between: Callable[[], None] = lambda: None, *, before: int = 0
) -> Tokenized:
    """Merge all parts, write the record and remove the parts; broken off, it is done anew.

    Args:
        between: see `merge`.
        before: bytes of text that earlier calls had tokenised; the seconds are this call's.
    """
    spec = job.spec
    if not counts.tokens:
        shutil.rmtree(spec.parts_folder, ignore_errors=True)
        hint = "" if spec.form == "text" else "; is it the right key (--json-keys)?"
        raise DataError(
            f"{', '.join(spec.inputs)}: {counts.documents} documents, {counts.bad} left out, and no token{hint}"
        )
    parts = [job.part(number) for number in range(len(job.pieces))]
    job.joining.touch()
    for place, key in enumerate(spec.keys):
        merge(parts, place, spec.output(key), job.dtype, between)
    outputs = [spec.output(key) for key in spec.keys]
    made = Tokenized(job.mark, spec, job.encoder, outputs, counts, seconds, before)
    write_sealed(spec.record, to_dict(made))
    shutil.rmtree(spec.parts_folder, ignore_errors=True)
    return made


def made_before(job: Job) -> Tokenized | None:
    """The record of the same job, complete. Raises DataError where the outputs are of another."""
    spec = job.spec
    try:
        raw = read_sealed(spec.record)
        found = None if raw is None else from_dict(Tokenized, raw)
    except (HpclmError, OSError, ValueError):
        found = None
    if found is not None and found.mark == job.mark:
        try:
            for prefix in found.outputs:
                read_header(prefix)
            return found
        except DataError:
            return None
    if job.joining.exists():
        return None
    for key in spec.keys:
        for path in (bin_path(spec.output(key)), idx_path(spec.output(key))):
            if path.exists():
                raise DataError(f"{path}: already exists, made from something else; give another --out or remove it")
    return None


def _sum(done: list[Counts | None]) -> Counts:
    return sum((counts for counts in done if counts is not None), Counts())


def _run(
    job: Job, done: list[Counts | None], workers: int, on_progress: Callable[[Progress], None], began: float
) -> Counts:
    """All pieces that are not complete (`done`: counts of each, None); returns the sum of all."""
    before = _sum(done)
    reused = sum(piece.size for piece, counts in zip(job.pieces, done, strict=True) if counts is not None)
    todo = [number for number, counts in enumerate(done) if counts is None]

    def tell(size: float, documents: float, tokens: float) -> None:
        on_progress(
            Progress(
                min(job.size, reused + int(size)),
                job.size,
                before.documents + int(documents),
                before.tokens + int(tokens),
                time.monotonic() - began,
                reused,
            )
        )

    if min(workers, len(todo)) > 1:
        return before + _by_many(job, todo, min(workers, len(todo)), tell)
    return before + _here(job, todo, tell)


def _here(job: Job, todo: list[int], tell: Callable[[float, float, float], None]) -> Counts:
    """In this process."""
    sums = [0, 0, 0]

    def add(*counts: int) -> None:
        sums[:] = [one + other for one, other in zip(sums, counts, strict=True)]
        tell(*sums)

    worker = Worker(job, add) if todo else None
    found = Counts()
    for number in todo:
        assert worker is not None
        found += worker.run(number)
    tell(*sums)
    return found


def _by_many(job: Job, todo: list[int], count: int, tell: Callable[[float, float, float], None]) -> Counts:
    """In as many processes."""
    context = multiprocessing.get_context("spawn")
    shared = context.Array("d", count * _FIELDS)
    places = context.Value("i", 0)
    found = Counts()
    with _pool(count, context, (job, shared, places, os.getpid())) as pool:
        running: set[Future[Counts]] = {pool.submit(_piece, number) for number in todo}
        while running:
            ended, running = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    found += future.result()
                except BrokenProcessPool:
                    raise HpclmError(
                        "a worker was killed (out of memory?); the same command goes on where it was, with fewer "
                        "--workers"
                    ) from None
            first, second, third = (sum(shared[place::_FIELDS]) for place in range(_FIELDS))
            tell(first, second, third)
    return found


@contextlib.contextmanager
def _pool(count: int, context: Any, arguments: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    # each worker is one of as many as there are processors; threads of the libraries would only get in their way
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=arguments)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    pool.shutdown()


def _end_with(parent: int) -> None:
    """Where the command was killed, its workers would wait for ever, or work beside those of the next one."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


_worker: Worker | None = None


def _start(job: Job, shared: SynchronizedArray[float], places: Any, command: int) -> None:
    """In a new worker of the process `command`."""
    import signal

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends its workers
    threading.Thread(target=_end_with, args=(command,), daemon=True).start()
    with places.get_lock():
        place = places.value
        places.value += 1

    def tell(count: int, documents: int, tokens: int) -> None:
        if place * _FIELDS < len(shared):
            for offset, value in enumerate((count, documents, tokens)):
                shared[place * _FIELDS + offset] += value

    _worker = Worker(job, tell)


def _piece(number: int) -> Counts:
    assert _worker is not None
    return _worker.run(number)
