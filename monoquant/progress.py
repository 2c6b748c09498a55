"""How far something is, told to a function that was given."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)``; the units are its caller's."""


def untold(_done: int, _total: int) -> None:
    """Tell nobody."""


def part_of(progress: Progress, first: int, last: int, total: int) -> Progress:
    """Progress of a part, as progress of the whole.

    Args:
        progress: Of the whole.
        first: What is done when the part begins.
        last: What is done when it has ended.
        total: What there is to do.
    """
    return lambda done, of: progress(first * of + (last - first) * done, total * of)
