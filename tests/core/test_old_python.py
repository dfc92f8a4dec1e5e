"""A Python that is too old, as an image or a site profile may name it, is one message."""

from __future__ import annotations

import pytest

from tests.support.processes import python


@pytest.mark.parametrize("module", ["hpclm", "hpclm.worker", "hpclm.nodes.preflight"])
def test_a_python_that_is_too_old_is_named_on_a_line_of_its_own(module: str) -> None:
    started = f"import sys; sys.version_info, sys.version = (3, 9, 18, 'final', 0), '3.9.18 (main)'; import {module}"
    done = python("-c", started)
    assert done.returncode == 1
    assert done.stderr == "hpclm: Python 3.9.18 found, 3.10 or newer needed\n"
