"""Run calibration data through the model, and collect what later passes asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import attrs

from monoquant.batches import Batches, Forward, check_forward, check_select, require_batches
from monoquant.context import QuantContext
from monoquant.data_run import UNWEIGHED, DataRun
from monoquant.errors import ConfigError, quoted
from monoquant.passes.base import Pass
from monoquant.progress import Progress
from monoquant.report import CalibrationFacts
from monoquant.report.table import format_bytes
from monoquant.statistics.listening import Listening
from monoquant.statistics.store import StatisticsStore, in_waves
from monoquant.values import Finding, Severity


def _check_data(_instance: Any, _attribute: Any, data: Any) -> None:
    require_batches(data, "calibration")


def _check_samples(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"num_samples={value!r}: give a whole number of calibration samples >= 1")


def _check_progress(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, bool) and not callable(value):
        raise ConfigError(f"progress={value!r}: give True, False or a function progress(samples, wanted)")


def _check_bytes(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"statistics_bytes={value!r}: give a whole number of bytes >= 1, such as 1 << 32")


@attrs.frozen
class CalibrationPass(Pass):
    """Feed batches to the model in eval mode; the model is left as it was, and its weights get no gradients.

    A tensor is passed as ``model(batch)``, a tuple or list as ``model(*batch)``, a mapping as ``model(**batch)``. Where
    a batch holds more than the input (labels, say), name the input with ``select``, or run the model yourself in
    ``forward``.

    Where something is fitted to the data (an algorithm's codes, say), one sample of sixteen is held out from that, so
    that outputs are measured on inputs that were not fitted to. Batches are cut for it where they can be; others, and
    those that ``forward`` takes, are held out whole.

    Args:
        data: A DataLoader, or any iterable or generator of batches.
        num_samples: Samples (not batches) to use at most, counted along the leading dimension; default 150. The last
            batch is cut to fit where all its tensors have that leading dimension, and used whole elsewhere.
        select: Position or key of the item in each batch that is the model's one input; default: the whole batch.
        forward: ``forward(model, batch)`` runs the model on a batch; default: as above. Its batches may be anything;
            without tensors, their items are counted as samples.
        progress: True writes a line to stderr, a function is called as ``progress(samples, num_samples)`` after each
            batch; default False.
        statistics_bytes: Memory for the statistics that algorithms need; default 4 GiB. A layer of n input features
            takes ``4 * n ** 2`` bytes for GPTQ; layers that meet the same inputs share them. What does not fit at once
            is collected in waves, each of which runs the data again.
    """

    single: ClassVar[bool] = True

    data: Iterable[Any] = attrs.field(validator=_check_data, repr=False)
    num_samples: int = attrs.field(default=150, validator=_check_samples)
    select: int | str | None = attrs.field(default=None, validator=check_select)
    forward: Forward | None = attrs.field(default=None, validator=check_forward)
    progress: bool | Progress = attrs.field(default=False, validator=_check_progress)
    statistics_bytes: int = attrs.field(default=1 << 32, validator=_check_bytes)

    def run(self, context: QuantContext) -> None:
        weights = context.watched_weights()
        waves = [
            [(one.layer, one.name) for one in wave]
            for wave in in_waves(weights, context.wanted_moments, self.statistics_bytes)
        ]
        data = Batches(self.data, self.num_samples, self.select, self.forward)
        run = DataRun(context, data.kept() if len(waves) > 1 else data, self.progress)
        listening = Listening(context.wanted, honest=bool(weights))
        first = run.over(waves[0], listening)
        if context.weighs_rows:
            context.gradients = run.probe
        elif context.wanted_gradients:
            context.gradients = run.probed({name: context.module(name) for name in sorted(context.wanted_gradients)})
        context.fold_sites = run.fold_sites
        context.statistics = StatisticsStore(waves, run.over, first)
        context.observed = listening.fulfilled()
        seen = {layer for layer, _ in context.observed}
        unseen = tuple(layer for layer in context.wanted if layer not in seen)
        context.calibration = CalibrationFacts(run.samples, run.batches, unseen, run.held_out)
        context.report([*map(_unseen_finding, unseen), *map(_fitted_finding, listening.measured_on_fitted())])
        if context.weighs_rows and not run.probe.found:
            context.report([UNWEIGHED])
        if len(waves) > 1:
            context.report([_waves_finding(len(waves), self.statistics_bytes)])


def _unseen_finding(layer: str) -> Finding:
    message = f"Calibration kept no input of layer {quoted([layer])}, so only its weights are measured."
    remedy = (
        "Use data that reaches it; some modules read a layer's weight without calling it. "
        "Calls that hold more than ValidationPass(sample_bytes=...) are not kept."
    )
    return Finding("not-calibrated", Severity.INFO, message, layer, remedy)


def _fitted_finding(layer: str) -> Finding:
    message = f"The output of layer {quoted([layer])} is measured on inputs that were fitted to, which flatters it."
    return Finding("measured-on-fitted", Severity.INFO, message, layer, "Give more calibration samples.")


def _waves_finding(waves: int, limit: int) -> Finding:
    message = f"The data was run {waves} times, because statistics of all layers do not fit into {format_bytes(limit)}."
    return Finding("calibrated-in-waves", Severity.INFO, message, remedy="Raise statistics_bytes to run it once.")
