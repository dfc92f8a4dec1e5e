"""`python -m tests.fuzz --seed N --cases N [--kind KIND] [--only NUMBER] [--keep DIR]`."""

from __future__ import annotations

import argparse
import collections
import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz import watch
from tests.fuzz.case import Case, Failure, cases
from tests.fuzz.kinds import KINDS


def main(arguments: list[str] | None = None) -> int:
    """Run cases; the exit code is 1 if any is bad."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="hpclm's commands on mutated input.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=1000, help="how many, the kinds in turn")
    parser.add_argument("--kind", choices=KINDS, help="default: all")
    parser.add_argument("--only", type=int, help="the case of this number alone; needs --kind")
    parser.add_argument("--keep", type=Path, help="folder for the files of bad cases")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    if given.only is not None and given.kind is None:
        parser.error("--only needs --kind")
    kinds = [given.kind] if given.kind else list(KINDS)
    todo = cases(given.seed, given.cases, kinds)
    if given.only is not None:
        todo = [Case(given.seed, given.only, given.kind)]
    keep = given.keep.absolute() if given.keep else None
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    watch.import_all()
    began = time.monotonic()
    bad: list[Failure] = []
    codes: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for ended in watch.run_all(todo, keep, given.workers):
        if isinstance(ended, Failure):
            bad.append(ended)
            _print("\n".join(lines(ended)))
        else:
            codes[ended.kind][ended.code] += 1
    for kind, counted in sorted(codes.items()):
        _print(f"{kind}: " + ", ".join(f"{number} times exit code {code}" for code, number in sorted(counted.items())))
    _print("\n".join(summary(bad)))
    done = len(bad) + sum(counted.total() for counted in codes.values())
    _print(f"{done} cases in {time.monotonic() - began:.0f} s, {len(bad)} bad")
    return 1 if bad or done != len(todo) else 0


def lines(failure: Failure) -> list[str]:
    """A bad case, to read and to run again."""
    command = shlex.join(["hpclm", *failure.arguments])
    kept = failure.kept or "not kept; add --keep DIR"
    shown = [f"  | {line}" for line in failure.output.splitlines()]
    return [
        f"{failure.case.kind} {failure.case.number}: {failure.what}: {failure.cause}",
        f"  command: {command[:1000]}",
        f"  files: {kept}",
        f"  again: {failure.case.again}",
        *shown,
        "",
    ]


def summary(bad: Iterable[Failure]) -> list[str]:
    """Bad cases by cause, the most frequent first."""
    groups: dict[tuple[str, str], list[Failure]] = collections.defaultdict(list)
    for failure in bad:
        groups[failure.what, failure.cause].append(failure)
    shown = []
    for (what, cause), found in sorted(groups.items(), key=lambda group: -len(group[1])):
        kinds = ", ".join(sorted({one.case.kind for one in found}))
        shown.append(f"{len(found):4} {what}: {cause}   ({kinds}; {found[0].case.again})")
    return shown


def _print(text: str) -> None:
    """Readable on every terminal: neither control characters nor lone surrogates."""
    plain = "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    sys.stdout.write(plain + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
