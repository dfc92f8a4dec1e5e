"""Which implementation of each exchangeable part a stage uses: decided while planning, from what is asked for.

torch's own everywhere today: they run on CPU and GPU alike, so that a rehearsal and the run give the same losses.
"""

from __future__ import annotations

from hpclm.core.spec import Backends


def choose() -> Backends:
    """The backends of a stage."""
    return Backends(attention="sdpa", norm="torch", optimizer="torch")
