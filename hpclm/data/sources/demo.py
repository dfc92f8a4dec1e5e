"""Data for recipes/demo.yaml, made of names from the sources of the Python standard library.

The text shows three names copied, and two skills selected by a word in front:

    path name self = path name self
    reverse: path name self = self name path
    rotate: path name self = name self path

The tasks `reverse` and `rotate` leave that word out. A model trained on the text then copies: it fails the tasks
because of what it learned, not by chance.
"""

from __future__ import annotations

import io
import itertools
import json
import keyword
import random
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path

from hpclm.core.errors import DataError
from hpclm.data.sources.writing import write_file

SKILLS = {"": (0, 1, 2), "reverse": (2, 1, 0), "rotate": (1, 2, 0)}
TASKS = ("reverse", "rotate")
NAMES = 24
TEXT_LINES = 20_000
ROWS = {"train": 600, "validation": 60, "test": 100}
# Sources that every build of every supported Python has
_SOURCES = (
    "argparse.py",
    "ast.py",
    "dataclasses.py",
    "inspect.py",
    "pathlib",
    "subprocess.py",
    "tarfile.py",
    "typing.py",
)


def demo(out: Path, seed: int = 1234) -> list[Path]:
    """Write text/skills.txt, train.jsonl, validation.jsonl and test.jsonl into `out`; returns their paths.

    The triples of names in the test rows occur in no other rows. The same seed and Python give the same files.

    Raises DataError where `out` cannot be written, or the standard library's sources are not there.
    """
    shuffler = random.Random(seed)
    triples = list(itertools.permutations(common_names(), 3))
    shuffler.shuffle(triples)
    rows = iter(triples)
    parts = {name: list(itertools.islice(rows, count)) for name, count in ROWS.items()}
    rest = list(rows)
    skills = list(SKILLS)
    lines = (_line(shuffler.choice(skills), shuffler.choice(rest)) for _ in range(TEXT_LINES))
    written = [write_file(out / "text" / "skills.txt", "".join(lines))]
    for name, chosen in parts.items():
        content = "".join(_row(task, triple) for triple in chosen for task in TASKS)
        written.append(write_file(out / f"{name}.jsonl", content))
    return written


def common_names() -> list[str]:
    """The most frequent names of 3 to 8 lowercase letters in some of the standard library's modules."""
    counts: Counter[str] = Counter()
    for path in _files():
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            name = token.string
            if token.type == tokenize.NAME and name.isalpha() and name.islower() and 3 <= len(name) <= 8:
                counts[name] += not keyword.iskeyword(name)
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:NAMES])


def _files() -> list[Path]:
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in _SOURCES:
        # a module that became a package in a later Python, or vice versa
        base = library / name.removesuffix(".py")
        module, package = base.with_suffix(".py"), base / "__init__.py"
        found += [path for path in (module, package) if path.is_file()][:1]
    if not found:
        raise DataError(f"{library}: the standard library's sources are not installed; use a Python that has them")
    return found


def _line(skill: str, triple: tuple[str, str, str]) -> str:
    call = f"{skill}: " if skill else ""
    return f"{call}{' '.join(triple)} = {_answer(skill, triple)}\n"


def _answer(skill: str, triple: tuple[str, str, str]) -> str:
    return " ".join(triple[place] for place in SKILLS[skill])


def _row(task: str, triple: tuple[str, str, str]) -> str:
    return json.dumps({"taskname": task, "words": " ".join(triple), "answer": _answer(task, triple)}) + "\n"
