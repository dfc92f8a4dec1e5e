"""Where the files of `launch/` are: in a checkout beside the package, in an installed one within it."""

from __future__ import annotations

from pathlib import Path


def launch_folder() -> Path:
    """The folder with supervise.sh and sites/."""
    package = Path(__file__).parents[1]
    installed = package / "_launch"
    return installed if installed.is_dir() else package.parent / "launch"
