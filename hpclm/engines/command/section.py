"""The recipe's section `program`: how an external program is started, and what it writes."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from hpclm.recipe.schema.base import Line, Section, fault, no_secrets, shown
from hpclm.recipe.schema.container_section import InsidePath, variable_name

# The placeholders in braces in an argument. docs/programs.md explains them.
PLACEHOLDERS = (
    "rank", "world_size", "local_rank", "local_world_size", "node_rank", "num_nodes", "devices_per_node",
    "master_addr", "master_port", "tensor", "context", "pipeline", "data",
    "run", "run_dir", "stage", "stage_dir", "checkpoints", "restart",
)  # fmt: skip


def _argument(text: str) -> str:
    """An argument: one line, whose braces are placeholders, or doubled."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        raise fault(f"{shown(text)} has an unmatched brace; double it ({{{{ or }}}}) for a literal brace") from None
    for name in names:
        if name not in PLACEHOLDERS:
            raise fault(f"{shown(text)}: no placeholder {shown(name)}; there are {', '.join(PLACEHOLDERS)}")
    return text


def _pattern(text: str) -> str:
    """A path pattern below the stage's folder."""
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise fault(f"{shown(text)} points outside the stage's folder; give a path in it, as checkpoints/*.pt")
    return text


Argument = Annotated[Line, AfterValidator(_argument)]


class Program(Section):
    """The program of a stage with `engine: command`, started without a shell."""

    argv: Annotated[tuple[Argument, ...], Field(min_length=1, max_length=1000)] = Field(
        description="program and arguments; {rank}, {master_addr} and others are replaced, {{ and }} are braces"
    )
    launcher: Literal["rank", "torchrun"] = Field(
        default="rank", description="start it once per rank, or under torchrun once per node"
    )
    environment: Annotated[dict[Annotated[str, AfterValidator(variable_name)], Line], AfterValidator(no_secrets)] = (
        Field(default_factory=dict, description="variables for the program")
    )
    workdir: InsidePath | None = Field(default=None, description="folder it starts in; null: the stage's")
    outputs: tuple[Annotated[Line, AfterValidator(_pattern)], ...] = Field(
        default=(), description="patterns in the stage's folder that must match at the end; collect copies these files"
    )
    progress: Line | None = Field(
        default=None, description="regular expression with (?P<step>…) and (?P<loss>…) for lines that status shows"
    )
    retry_exit_codes: tuple[Annotated[int, Field(ge=1, le=255)], ...] = Field(
        default=(), description="exit codes after which the program is started again"
    )
