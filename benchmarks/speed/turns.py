"""Calls that are timed in turn, the float one first."""

from __future__ import annotations

from collections.abc import Callable

from speed.timing import SHORTEST, Clock, seconds

BASELINE = "float"
FEWEST = 3
"""Samples of a call whose patience is over,"""
ENDLESS = 3
"""unless it is over so many times."""
SURELY_LONG = 0.1
"""Seconds of a first call that nothing but the call itself explains."""
ROUND = 0.05
"""Seconds of a round: turns are repeated until then, since one sample of a short call says little."""
MOST = 10
"""Turns of a round, at most."""


class Turns:
    """Times calls in turn.

    Args:
        clock: Tells seconds.
        patience: Seconds that one call may take in all rounds.
    """

    def __init__(self, clock: Clock, patience: float) -> None:
        self._clock, self._patience = clock, patience
        self._calls: dict[str, tuple[Callable[[], object], int]] = {}
        self._spent: dict[str, list[float]] = {}

    def add(self, name: str, call: Callable[[], object]) -> None:
        """Call something once, and take it part from now on.

        Args:
            name: `BASELINE`, or of a way.
            call: What is timed.
        """
        first = seconds(call, clock=self._clock)
        once = first if first > SURELY_LONG else seconds(call, clock=self._clock)
        self._calls[name] = call, max(1, int(SHORTEST / once))
        self._spent[name] = []

    def round(self) -> list[dict[str, float]]:
        """Seconds of the calls, for each turn; without calls whose patience is over, none if it is the float one's."""
        self._wake()
        turns: list[dict[str, float]] = []
        while len(turns) < MOST and sum(sum(turn.values()) for turn in turns) < ROUND:
            turn = self._turn()
            if len(turn) < 2:
                break
            turns.append(turn)
        return turns

    def _wake(self) -> None:
        """Call what is short once more: after another process's turn, caches hold that one's memory."""
        for name, (call, _) in self._calls.items():
            if self._spent[name] and self._spent[name][-1] < SURELY_LONG:
                call()

    def _turn(self) -> dict[str, float]:
        names = [name for name in self._calls if self._goes_on(name)] if self._goes_on(BASELINE) else []
        found = {}
        for name in names if len(names) > 1 else []:
            call, repeats = self._calls[name]
            found[name] = seconds(call, repeats, self._clock)
            self._spent[name].append(found[name] * repeats)
        return found

    def _goes_on(self, name: str) -> bool:
        spent, count = sum(self._spent[name]), len(self._spent[name])
        return spent < self._patience or (count < FEWEST and spent < ENDLESS * self._patience)
