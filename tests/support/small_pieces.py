"""A rank of a tokenize stage whose corpus is cut into small pieces, so that there is one for each rank of a test."""

from __future__ import annotations

import os
import time

from hpclm.data.corpus import inputs
from hpclm.data.corpus.job import Worker
from hpclm.data.corpus.tokenized_record import Counts
from hpclm.worker import entry


def main(stage_dir: str, attempt: str) -> None:
    inputs.PIECE_BYTES = 2000
    run, delay = Worker.run, float(os.environ.get("TEST_SECONDS_A_PIECE", "0"))

    def slow(worker: Worker, number: int) -> Counts:
        found = run(worker, number)
        time.sleep(delay)
        return found

    Worker.run = slow  # type: ignore[method-assign,assignment]
    entry.main(stage_dir, attempt)
