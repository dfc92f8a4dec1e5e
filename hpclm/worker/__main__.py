"""`python -m hpclm.worker STAGE_DIR ATTEMPT`: one rank, identified by the environment."""

from __future__ import annotations

import sys

# Before anything else is imported. Thousands of ranks would write the same bytecode into the run's folder at once; and
# where they run, in the stage's folder, no module is.
sys.dont_write_bytecode = True
sys.path[:1] = []

if __name__ == "__main__":
    from hpclm.worker.entry import main

    main(*sys.argv[1:3])
