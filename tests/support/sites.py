"""Sites that tests submit to."""

from __future__ import annotations

from hpclm.core.site import Site

LOCAL = Site(name="local", scheduler="local")
SLURM = Site(name="slurm", scheduler="slurm")
