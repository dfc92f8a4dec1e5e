"""What happens after a failure, a lost node or a hang."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpclm.recipe.schema.base import Section

Times = Annotated[int, Field(ge=0, le=1000)]


class Recovery(Section):
    """Restarts after failures. Preemptions and time limits do not count against these limits."""

    max_restarts: Times = Field(default=10, description="how many times the ranks are restarted after failures")
    max_without_progress: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="attempts in a row that saved no new step before the stage fails"
    )
    stall_timeout_s: Annotated[int, Field(ge=5, le=10**6)] | None = Field(
        default=1200, description="seconds without any progress before the ranks are stopped; null: never"
    )
    max_bad_nodes: Times = Field(default=4, description="faulty nodes that the stage may exclude")
    preflight: bool = Field(default=True, description="check the nodes before each start (Slurm only)")
