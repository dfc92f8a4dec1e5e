"""The nearest values that satisfy a divisibility rule, and how to print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [i for i in range(1, int(number**0.5) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def closest(values: Iterable[int], to: int, count: int = 4) -> tuple[int, ...]:
    """The `count` values nearest to `to`, ascending."""
    return tuple(sorted(sorted(values, key=lambda value: (abs(value - to), value))[:count]))


def multiples(of: int, to: int) -> tuple[int, ...]:
    """The multiples of `of` just below and above `to` (at least `of` itself)."""
    low = to // of * of
    return tuple(value for value in (low, low + of) if value > 0)


def either(values: Sequence[object]) -> str:
    """`1, 2 or 4`."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, None if none is similar."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None
