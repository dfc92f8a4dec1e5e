"""`python -m hpclm.worker STAGE_DIR ATTEMPT`: one rank, identified by the environment."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Before anything else is imported: thousands of ranks would write the same bytecode into the run's folder at once,
    # and look for every module where they are started, in the stage's folder, first, and then in the payload.
    sys.dont_write_bytecode = True
    if not getattr(sys.flags, "safe_path", False):  # there since Python 3.11
        del sys.path[0]
    from hpclm.core.bundled_modules import import_from_bundle

    import_from_bundle(Path(__file__).parents[2])
    from hpclm.worker.entry import main

    main(*sys.argv[1:3])
