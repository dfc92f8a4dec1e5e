"""A rank of a tokenize stage. Nothing here imports torch: a cluster's CPU nodes will do."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hpclm.core import heartbeat
from hpclm.core.corpus_spec import CorpusSpec, TokenizeStageSpec
from hpclm.core.layout import AttemptPaths
from hpclm.core.locks import exclusive
from hpclm.core.logging import log
from hpclm.core.records import from_dict, read_record, to_dict
from hpclm.core.sealed import write_sealed
from hpclm.data.corpus.job import Job, Worker, make_job
from hpclm.data.corpus.tokenized_record import Counts, Tokenized
from hpclm.data.corpus.tokenizing import THREADS, finish, made_before, make_folder
from hpclm.worker.peers import refuse_failed, wait_until_finished
from hpclm.worker.rank_launch import RankLaunch
from hpclm.worker.report import Progress, StoppedError

_POLL_S = 0.2
_SHOWN_S = 1.0


@dataclass(frozen=True)
class SharedJob:
    """What rank 0 tells the others. `made`: an earlier attempt has made all of it."""

    job: Job
    made: Tokenized | None = None


def run(launch: RankLaunch) -> None:
    """Take pieces; the first rank joins the parts. Returns when the stage is complete."""
    # each rank is one of as many as there are processors; threads of the libraries would only get in their way
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    spec = from_dict(TokenizeStageSpec, launch.spec)
    facts, attempt, began = launch.facts, launch.attempt, time.time()
    progress = Progress(launch.stage.progress, launch.stage.metrics, active=facts.rank == 0)
    if facts.rank > 0:
        _take(_told(attempt, launch), launch, progress)
        attempt.finished(facts.rank).touch()
        # the scheduler may end a job whose tasks have exited
        wait_until_finished(attempt, [0], lambda: _heed(launch, "the parts are joined"))
        return
    progress.update(phase="reading the inputs")
    with _owned(spec.corpus):
        shared = _shared(spec.corpus)
        write_sealed(attempt.corpus, to_dict(shared))
        _take(shared, launch, progress)
        others = range(1, facts.world_size)
        wait_until_finished(attempt, others, lambda: _show(shared.job, progress, launch))
        made = shared.made or _joined(shared.job, progress, began, launch)
    count = len(shared.job.pieces)
    progress.update(phase="done", step=count, total_steps=count, force=True)
    counts = {key: value for key, value in to_dict(made.counts).items() if key != "examples"}
    result = {"task": spec.task, "world_size": facts.world_size, "data_sets": made.outputs, "encoder": made.encoder}
    write_sealed(launch.stage.result, {**result, **counts, "seconds": time.time() - began})
    attempt.finished(0).touch()


@contextlib.contextmanager
def _owned(corpus: CorpusSpec) -> Iterator[None]:
    make_folder(corpus)
    with exclusive(corpus.parts_folder, f"{corpus.parts_folder}: another process is tokenising to this prefix"):
        yield


def _shared(corpus: CorpusSpec) -> SharedJob:
    job = make_job(corpus, heartbeat.beat)
    for note in job.notes:
        log(note)
    made = made_before(job)
    log(f"{len(job.pieces)} pieces, {job.size / 1e6:,.0f} MB, by {job.encoder}")
    return SharedJob(job, made)


def _told(attempt: AttemptPaths, launch: RankLaunch) -> SharedJob:
    while True:
        found = read_record(SharedJob, attempt.corpus)
        if found is not None:
            return found
        refuse_failed(attempt, [0])
        heartbeat.beat()
        _heed(launch, "nothing is tokenised yet")
        time.sleep(_POLL_S)


def _take(shared: SharedJob, launch: RankLaunch, progress: Progress) -> None:
    """This rank's pieces that no earlier attempt has made."""
    if shared.made is not None:
        return
    job, facts = shared.job, launch.facts
    mine = [n for n in range(facts.rank, len(job.pieces), facts.world_size) if job.part(n).counts() is None]
    if not mine:
        return
    worker = Worker(job, lambda *_: _show(job, progress, launch))
    for number in mine:
        worker.run(number)


_shown_at = 0.0


def _show(job: Job, progress: Progress, launch: RankLaunch) -> None:
    """How many pieces there are of all ranks; a stop is heeded between some documents and the next."""
    global _shown_at
    _heed(launch, "the next job goes on with the pieces that are left")
    now = time.monotonic()
    if progress.active and now - _shown_at < _SHOWN_S:
        return
    done = sum(1 for _ in job.parts_folder.glob("*.json")) if progress.active else 0
    progress.update(phase="tokenizing", step=done, total_steps=len(job.pieces))
    _shown_at = time.monotonic()


def _heed(launch: RankLaunch, what: str) -> None:
    if launch.stop.requested:
        raise StoppedError(f"stop requested; {what}")


def _joined(job: Job, progress: Progress, began: float, launch: RankLaunch) -> Tokenized:
    count = len(job.pieces)
    progress.update(phase="joining the parts", step=count, total_steps=count)

    def between() -> None:
        heartbeat.beat()
        _heed(launch, "the next job joins the parts")

    found = [job.part(number).counts() for number in range(len(job.pieces))]
    counts = sum((one for one in found if one is not None), Counts())
    for example in counts.examples:
        log(f"left out: {example}")
    return finish(job, counts, time.time() - began, between)
