"""The passes of a run as stages of a command."""

from __future__ import annotations

import monoquant
from monoquant.cli.meter import Look, Meter, Tally
from monoquant.context import QuantContext
from monoquant.passes.base import Pass
from monoquant.passes.budget import BudgetPass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.pack import PackPass
from monoquant.passes.validation import ValidationPass


class StageWatcher:
    """Tells a meter which pass works, and how far it is.

    Args:
        meter: What shows it.

    Attributes:
        samples: What ``quantize(progress=...)`` tells of calibration data.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.samples = Tally()

    @monoquant.hookimpl
    def monoquant_before_pass(self, pass_: Pass, context: QuantContext) -> None:
        """Enter a stage."""
        self._meter.enter(*self._stage(pass_, context))

    @monoquant.hookimpl
    def monoquant_after_pass(self, pass_: Pass, context: QuantContext, error: BaseException | None) -> None:
        """Leave it."""
        self._meter.leave()

    def _stage(self, pass_: Pass, context: QuantContext) -> tuple[str, Look | None]:
        match pass_:
            case CalibrationPass():
                self.samples.count(0, 0)
                return "running calibration data", self.samples.look
            case BudgetPass():
                wanted = {layer.name for layer in context.quantized_layers()}
                return "weighing layers", lambda: (len({key[0] for key in tuple(context.represented)}), len(wanted))
            case PackPass():
                sizes = {layer.name: layer.parameters for layer in pass_.mine(context)}
                return f"choosing codes, {pass_.scheme}", lambda: _share(sizes, tuple(context.packed))
            case ValidationPass():
                sizes = {layer.name: layer.parameters for layer in context.quantized_layers()}
                return "measuring what was lost", lambda: _share(sizes, tuple(context.measurements))
        return type(pass_).__name__, None


def _share(sizes: dict[str, int], done: tuple[str, ...]) -> tuple[int, int]:
    return sum(sizes.get(name, 0) for name in done), sum(sizes.values())
