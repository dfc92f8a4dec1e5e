"""The house as docs/architecture.md says it is: measured, not promised."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hpclm"
FILES = sorted(PACKAGE.rglob("*.py"))
# What each entry of a registry has under the same name, in a folder of its own.
AXES = ("engines", "schedulers", "recipe/importers")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or in a function; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while True:
                one = stack.pop()
                group.append(one)
                if one == node:
                    break
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def edges_between(name: dict[str, str]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = defaultdict(set)
    for module, path in MODULES.items():
        for other in imports_of(path):
            if other in MODULES and name[module] != name[other]:
                edges[name[module]].add(name[other])
    return edges


def test_no_modules_import_each_other() -> None:
    assert circles(edges_between({module: module for module in MODULES})) == []


def test_no_rooms_import_each_other() -> None:
    rooms = {module: ".".join(module.split(".")[:2]) for module in MODULES}
    assert circles(edges_between(rooms)) == []


def test_each_room_imports_what_the_architecture_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \| .* \| ([^|]+) \|$", text, re.MULTILINE)
    order = [room for room, _ in rows]
    rooms = {module: ([*module.split("."), ""])[1] for module in MODULES}
    assert set(order) == set(rooms.values()) - {""}
    edges = edges_between(rooms)
    for place, (room, written) in enumerate(rows):
        allowed = set(order[place + 1 :]) if "all below" in written or "everything" in written else set()
        allowed |= set(re.findall(r"\w+", written))
        assert edges[room] - allowed - {""} == set(), room


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_torch_is_in_folders_named_ranks_alone() -> None:
    heavy = ("torch", "megatron", "deepspeed", "transformers", "peft", "apex")
    outside = {
        module: other
        for module, path in MODULES.items()
        if "ranks" not in path.relative_to(PACKAGE).parts
        for other in imports_of(path)
        if other.split(".")[0] in heavy
    }
    assert outside == {}


def test_nothing_in_a_ranks_folder_imports_the_login_side() -> None:
    light = ("pydantic", "typer", "rich", "yaml", "submitit")
    found = {
        module: other
        for module, path in MODULES.items()
        if "ranks" in path.relative_to(PACKAGE).parts
        for other in imports_of(path)
        if other.split(".")[0] in light
    }
    assert found == {}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno + 1 > 50
    ]
    assert long == []


def entry_of(inner: str) -> str:
    """The registry's entry that a file belongs to: `engines/nemo`, or a task's name wherever it is."""
    if "tasks/" in inner:
        return f"tasks/{Path(inner).stem}/{inner}"
    axis = next((axis for axis in AXES if inner.startswith(f"{axis}/")), None)
    name = inner.removeprefix(f"{axis}/").partition("/")[0]
    return f"{axis}/{name}" if axis else ""


def test_names_of_files_say_what_is_in_them() -> None:
    """No two files differ by their folder alone, unless each belongs to another entry of a registry."""
    named = defaultdict(list)
    for path in FILES:
        if not path.stem.startswith("__"):
            named[path.name].append(str(path.relative_to(PACKAGE)))
    unclear = {
        name: paths
        for name, paths in named.items()
        if len(paths) > 1 and len({entry_of(path) for path in paths} - {""}) < len(paths)
    }
    assert unclear == {}


def test_the_import_order_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
