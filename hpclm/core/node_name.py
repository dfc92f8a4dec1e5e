"""The name of this machine in the scheduler."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

# Holds the names of a scheduler's own variables: of the rank, the world size, the local rank, the node's rank and the
# node's name.
VARIABLES = "HPCLM_RANK_VARIABLES"


def node_name(environment: Mapping[str, str] = os.environ) -> str:
    """What the scheduler calls this machine; its host name if no scheduler names it."""
    named = environment.get(VARIABLES, "").split()[4:5]
    return (environment.get(named[0]) if named else None) or socket.gethostname()
