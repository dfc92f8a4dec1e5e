"""2,000 mutated inputs of every kind: an answer each time, soon, and never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.processes import run

_CASES = 2000


@pytest.mark.slow
def test_no_input_breaks_a_command(tmp_path: Path) -> None:
    """In processes of its own: what is forked for each case must be small."""
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "1", "--cases", str(_CASES), "--keep", str(tmp_path)]
    done = run(command, cwd=Path(__file__).parents[2], timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]
    assert f"{_CASES} cases in" in done.stdout
