"""The choice between everything that was seen and the least error, made by what is predicted of both."""

from __future__ import annotations

from typing import Literal

import attrs
from torch import Tensor

from monoquant.ranges.histogram import HistogramObserver

_NEEDED_GAIN_DB = 0.5


@attrs.frozen(eq=False)
class _Decision:
    count: int
    choice: Literal["minmax", "histogram"]
    reason: str
    low: Tensor
    high: Tensor


class AutoObserver(HistogramObserver):
    """**Experimental**: takes the histogram's range where that is predicted to pay, and min and max elsewhere.

    Clipping must be predicted to give more than 0.5 dB, because calibration data never show all outliers. The
    prediction pools the squared errors of all channels, and one choice holds for all of them.

    Args:
        bits: Bits of the codes to choose for, 1 to 16, default 8.
        channel_axis: None (default) for one range, or the dimension whose every index gets one.

    Raises:
        ConfigError: For bits that are no whole number from 1 to 16.
    """

    _decided: _Decision | None = None

    @property
    def choice(self) -> Literal["minmax", "histogram"]:
        """Whose range it is: ``"minmax"`` or ``"histogram"``; raises InputError where ``range()`` does."""
        return self._decision().choice

    @property
    def reason(self) -> str:
        """Why, with the predicted SQNR of both in dB; raises InputError where ``range()`` does."""
        return self._decision().reason

    def _limits(self) -> tuple[Tensor, Tensor]:
        decision = self._decision()
        return decision.low, decision.high

    def _decision(self) -> _Decision:
        self._require_values()
        # Every update and merge that changes anything adds to the count.
        if self._decided is None or self._decided.count != self.count:
            self._decided = self._decide()
        return self._decided

    def _decide(self) -> _Decision:
        low, high = super()._limits()
        minmax = self.predicted_energy(self._shaped(self._low, self._high)).sqnr_db
        histogram = self.predicted_energy(self._shaped(low, high)).sqnr_db
        figures = f"{histogram:.2f} dB for the histogram's range and {minmax:.2f} dB for min and max"
        if histogram > minmax + _NEEDED_GAIN_DB:
            reason = f"Clipping is predicted to pay: {figures}."
            return _Decision(self.count, "histogram", reason, low, high)
        reason = f"Clipping is not predicted to give more than {_NEEDED_GAIN_DB} dB: {figures}."
        return _Decision(self.count, "minmax", reason, self._low, self._high)
