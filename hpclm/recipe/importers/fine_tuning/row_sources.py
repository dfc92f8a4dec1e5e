"""Files of rows with their form, and several of them as one recipe's `instructions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# What hpclm calls the keys of each form; all of them are looked for in every row.
KEYS = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "messages": ("messages", "system"),
}
# Names of roles that need no translation.
ROLE_NAMES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "function_call"),
    "system": ("system", "developer"),
    "tool": ("tool", "observation", "function"),
}


@dataclass(frozen=True)
class RowSource:
    """Files of one form.

    Attributes:
        form: alpaca or messages.
        columns, roles: hpclm's names, and the rows' where they differ.
        template, chat_template: of instructions, where the source itself says it.
        absent: what to do where its files are not on this machine.
    """

    name: str
    files: tuple[str, ...]
    form: str
    columns: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    template: str = "chat"
    chat_template: str | None = None
    learn: str = "answers"
    absent: str | None = None


def role_names(tags: dict[str, list[str]]) -> dict[str, str]:
    """The `roles` that the rows' names need. Raises ValueError where a role has several that hpclm does not know."""
    found = {}
    for role, names in tags.items():
        others = [name for name in names if name not in ROLE_NAMES.get(role, ())]
        if role not in ROLE_NAMES or len(others) > 1:
            what = role if role not in ROLE_NAMES else " and ".join(others)
            raise ValueError(f"{what}: the roles are user, assistant, system and tool, each with one name of the rows'")
        if others:
            found[role] = others[0]
    return found


def conflict(sources: Sequence[RowSource]) -> str | None:
    """Why sources cannot be one stage's rows; None where they can."""
    for name in ("template", "chat_template", "learn"):
        values = {getattr(one, name) for one in sources}
        if len(values) > 1:
            return f"{name} is {' and '.join(sorted(map(str, values)))}"
    named: dict[str, tuple[str, str]] = {}
    for one in sources:
        for key in KEYS[one.form]:
            column = one.columns.get(key, key)
            other, source = named.setdefault(key, (column, one.name))
            if other != column:
                return f"{key} is called {other} in {source} and {column} in {one.name}"
        for role, name in one.roles.items():
            other, source = named.setdefault(f"role {role}", (name, one.name))
            if other != name:
                return f"the {role} is called {other} in {source} and {name} in {one.name}"
    return None


def together(sources: Sequence[RowSource]) -> tuple[str, dict[str, str], dict[str, str]]:
    """Format, columns and roles of sources that go together."""
    forms = {one.form for one in sources}
    columns = {key: value for one in sources for key, value in one.columns.items()}
    roles = {key: value for one in sources for key, value in one.roles.items()}
    return forms.pop() if len(forms) == 1 else "auto", columns, roles
