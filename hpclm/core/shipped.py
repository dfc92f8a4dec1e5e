"""Where the files of `launch/` are: next to the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path


def launch_folder() -> Path:
    """The folder with supervise.sh and sites/."""
    package = Path(__file__).parents[1]
    installed = package / "_launch"
    return installed if installed.is_dir() else package.parent / "launch"
