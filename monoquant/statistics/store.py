"""Where the statistics of a run are, and how those are collected that did not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from monoquant.errors import InputError, quoted
from monoquant.statistics.collector import RowStatistics
from monoquant.statistics.moments import moment_bytes
from monoquant.statistics.watch import WatchedWeight

Key = tuple[str, str]
"""Name of a layer, and of one of its weights."""
Collected = Mapping[Key, Sequence[RowStatistics]]


class StatisticsStore:
    """Statistics of weights' inputs; those of one wave are in memory at a time.

    Args:
        waves: Weights whose statistics fit into memory together, in the order in which they will be asked for.
        collect: Runs the data, and returns the statistics of some weights.
        first: What the first wave has collected already.
    """

    def __init__(
        self, waves: Sequence[Collection[Key]], collect: Callable[[Collection[Key]], Collected], first: Collected
    ) -> None:
        self._waves = waves
        self._collect = collect
        self._resident = first

    def of(self, weight: Key) -> Sequence[RowStatistics]:
        """What is known of a weight's inputs; runs the data again if the weight is not of the present wave.

        Args:
            weight: Layer and name.

        Returns:
            Disjoint ranges of rows; empty for a weight that was not asked for, or never multiplied.
        """
        if weight not in self._resident:
            wave = next((wave for wave in self._waves if weight in wave), None)
            if wave is None:
                return ()
            self._resident = {}  # let go before others are collected
            self._resident = self._collect(wave)
        return self._resident.get(weight, ())

    def sharing(self, part: RowStatistics) -> Iterator[tuple[Key, RowStatistics]]:
        """All rows in memory that meet the same inputs as some rows do, those included.

        Args:
            part: Rows of the present wave.
        """
        for weight, parts in self._resident.items():
            for other in parts:
                if other.moments is part.moments:
                    yield weight, other


def in_waves(weights: Sequence[WatchedWeight], full: Mapping[Key, bool], limit: int) -> list[list[WatchedWeight]]:
    """Put weights together whose statistics fit into memory at once.

    Args:
        weights: In the order in which their statistics will be asked for.
        full: Whether all of H is wanted, by weight.
        limit: Bytes.

    Returns:
        Waves in order; statistics that turn out to be shared take less than what is reckoned with here.

    Raises:
        InputError: When a single weight's statistics do not fit; all such weights are named.
    """
    needed = {(one.layer, one.name): _bytes(one, full[one.layer, one.name]) for one in weights}
    largest = max(needed.values(), default=0)
    if largest > limit:
        layers = list(dict.fromkeys(layer for (layer, _), size in needed.items() if size > limit))
        raise InputError(
            f"statistics_bytes={limit} is too little for the inputs of {quoted(layers)}, which take up to {largest} "
            "bytes: allow that many, or choose an algorithm that needs less, such as 'clip_search'",
            layers=layers,
        )
    waves: list[list[WatchedWeight]] = [[]]
    held = 0
    for one in weights:
        size = needed[one.layer, one.name]
        if held + size > limit:
            waves.append([])
            held = 0
        waves[-1].append(one)
        held += size
    return waves


def _bytes(weight: WatchedWeight, full: bool) -> int:
    form = weight.form
    stacked = form.split[0] if form.row_axes >= 2 else 1
    return stacked * moment_bytes(form.columns, full=full)
