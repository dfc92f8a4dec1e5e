"""`python -m hpclm.worker STAGE_DIR ATTEMPT`: one rank, identified by the environment."""

from __future__ import annotations

import sys

from hpclm.worker.entry import main

if __name__ == "__main__":
    main(*sys.argv[1:3])
