"""A tracer as a program, which `planning.tracing` runs: ranks are asked for on standard input, and answered one line
each, in the order in which they are done.

What an engine needs is loaded once; each rank is then traced in a fork of its own, for tensors without bytes stay in
caches, and a fork that dies takes no other with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch._subclasses.fake_tensor import FakeTensorMode

from hpclm.core.errors import HpclmError
from hpclm.core.rank_trace import RankTrace
from hpclm.core.records import from_dict, to_dict
from hpclm.worker.ranks.storage_counter import is_ours, short

Spec = TypeVar("Spec")


def serve(trace: Callable[[Spec, int], RankTrace], kind: type[Spec]) -> None:
    """Read `{"asked": [{"spec": …, "rank": n}, …], "at_once": n}` on standard input; write `[place, RankTrace]` as JSON
    for each of them. Ends the process. The caller has imported what `trace` needs."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    request = json.load(sys.stdin)
    FakeTensorMode()  # the first loads torch's compiler, most of a second
    gc.freeze()  # or each fork copies what it looks through for garbage
    for place, found in _in_forks(lambda one: _traced(trace, kind, one), request["asked"], int(request["at_once"])):
        answers.write(json.dumps([place, to_dict(found)]) + "\n")
        answers.flush()
    os._exit(0)


def _in_forks(
    trace: Callable[[dict[str, Any]], RankTrace], asked: list[dict[str, Any]], at_once: int
) -> Iterator[tuple[int, RankTrace]]:
    context = multiprocessing.get_context("fork")
    waiting = deque(enumerate(asked))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            place, one = waiting.popleft()
            mine, its = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=_answer, args=(trace, one, its))
            process.start()
            its.close()
            running[mine] = place, process
        for ready in wait(list(running)):
            assert isinstance(ready, Connection)
            place, process = running.pop(ready)
            try:
                found: RankTrace = ready.recv()
            except EOFError:
                process.join()
                died = f"the tracer ended with code {process.exitcode} (a negative one is a signal's number)"
                found = RankTrace(asked[place]["spec"]["stage"], int(asked[place]["rank"]), error=died)
            process.join()
            yield place, found


def _answer(trace: Callable[[dict[str, Any]], RankTrace], one: dict[str, Any], answer: Connection) -> None:
    answer.send(trace(one))
    answer.close()
    os._exit(0)  # fake groups need no farewell


def _traced(trace: Callable[[Spec, int], RankTrace], kind: type[Spec], one: dict[str, Any]) -> RankTrace:
    rank = int(one["rank"])
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return trace(from_dict(kind, one["spec"]), rank)
    except Exception as error:
        traceback.print_exc()
        said = str(error) if isinstance(error, HpclmError) else f"{type(error).__name__}: {error}"
        return RankTrace(one["spec"]["stage"], rank, where=_own_lines(error), error=said)


def _own_lines(error: BaseException) -> list[str]:
    """The innermost lines of hpclm and of the engine that led to an error."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return [f"{short(one.filename)}:{one.lineno} {one.name}" for one in frames if is_ours(one.filename)][:3]
