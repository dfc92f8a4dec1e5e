"""hpclm: a Slurm launcher and cluster toolkit for large language models."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - an image may have any Python, and pip has not seen it
    # in one piece: other processes write to the same log
    sys.stderr.write(f"hpclm: Python {sys.version.split()[0]} found, 3.10 or newer needed\n")
    raise SystemExit(1)

__version__ = "0.2.0"
