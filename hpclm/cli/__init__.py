"""The command line. `main` is what `hpclm` runs."""

from hpclm.cli.app import main, run

__all__ = ["main", "run"]
