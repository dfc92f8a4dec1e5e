"""What happens when a stage is disturbed: by a failure, a node, a hang."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpclm.recipe.schema.base import Section

Times = Annotated[int, Field(ge=0, le=1000)]


class Recovery(Section):
    """Starting again after a disturbance. Preemptions and time limits cost nothing of these allowances."""

    max_restarts: Times = Field(default=10, description="failures after which the ranks are started again")
    max_without_progress: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="attempts in a row that saved no new step before the stage is given up"
    )
    stall_timeout_s: Annotated[int, Field(ge=5, le=10**6)] | None = Field(
        default=1200, description="seconds without any progress before the ranks are ended; null: never"
    )
    max_bad_nodes: Times = Field(default=4, description="nodes the stage may leave out because they are at fault")
    preflight: bool = Field(default=True, description="check the nodes before each start (Slurm only)")
