"""Run calibration data through the model, and collect what later passes asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import attrs
from torch import nn

from monoquant.batches import Batches, Forward, Part, require_batches, run_model
from monoquant.context import QuantContext
from monoquant.errors import ConfigError, quoted
from monoquant.passes.base import Pass
from monoquant.report import CalibrationFacts
from monoquant.report.table import format_bytes
from monoquant.restoring import undisturbed
from monoquant.statistics.collector import MomentCollector
from monoquant.statistics.gradients import GradientProbe
from monoquant.statistics.listening import Listening
from monoquant.statistics.origin_watch import OriginWatch
from monoquant.statistics.store import Collected, Key, StatisticsStore, in_waves
from monoquant.statistics.watch import ProductWatch, WatchedWeight
from monoquant.values import Finding, Severity

Progress = Callable[[int, int], None]
_PROBED_SAMPLES = 64
_PROBED_ROWS = 1024
"""So many rows of output, tokens say, are enough to rank layers; so many samples are where each is one row."""
_PROBED_AT_ONCE = 4
"""Going backward keeps what every layer computed for so many samples."""


def _check_data(_instance: Any, _attribute: Any, data: Any) -> None:
    require_batches(data, "calibration")


def _check_samples(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"num_samples={value!r}: give a whole number of calibration samples >= 1")


def _check_forward(instance: CalibrationPass, _attribute: Any, value: Any) -> None:
    if value is not None and not callable(value):
        raise ConfigError(f"forward={value!r}: give a function forward(model, batch)")
    if value is not None and instance.select is not None:
        raise ConfigError("select and forward are both given: let forward(model, batch) choose the input itself")


def _check_select(_instance: Any, _attribute: Any, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise ConfigError(f"select={value!r}: give the position or the key of the batch item that is the input")


def _check_progress(_instance: Any, _attribute: Any, value: Any) -> None:
    if not isinstance(value, bool) and not callable(value):
        raise ConfigError(f"progress={value!r}: give True, False or a function progress(samples, wanted)")


def _check_bytes(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"statistics_bytes={value!r}: give a whole number of bytes >= 1, such as 1 << 32")


@attrs.frozen
class CalibrationPass(Pass):
    """Feed batches to the model in eval mode without gradients; the model is left as it was.

    A tensor is passed as ``model(batch)``, a tuple or list as ``model(*batch)``, a mapping as ``model(**batch)``. Where
    a batch holds more than the input (labels, say), name the input with ``select``, or run the model yourself in
    ``forward``.

    Where something is fitted to the data (an algorithm's codes, say), one sample of eight is held out from that, so
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
    select: int | str | None = attrs.field(default=None, validator=_check_select)
    forward: Forward | None = attrs.field(default=None, validator=_check_forward)
    progress: bool | Progress = attrs.field(default=False, validator=_check_progress)
    statistics_bytes: int = attrs.field(default=1 << 32, validator=_check_bytes)

    def run(self, context: QuantContext) -> None:
        weights = context.watched_weights()
        waves = in_waves(weights, context.wanted_moments, self.statistics_bytes)
        data = Batches(self.data, self.num_samples, self.select, self.forward)
        run = _Run(context, data.kept() if len(waves) > 1 else data, self.progress)
        listening = Listening(context.wanted, honest=bool(weights))

        def collect(keys: Collection[Key]) -> Collected:
            return run.over([one for one in weights if (one.layer, one.name) in keys])

        origins = OriginWatch(context.model, weights) if context.wants_fold_sites and weights else None
        first = run.over(waves[0], listening, origins)
        if origins is not None:
            context.fold_sites = origins.found()
        if context.wanted_gradients:
            context.gradients = run.probed({name: context.module(name) for name in sorted(context.wanted_gradients)})
        context.statistics = StatisticsStore([[(w.layer, w.name) for w in wave] for wave in waves], collect, first)
        context.observed = listening.fulfilled()
        seen = {layer for layer, _ in context.observed}
        unseen = tuple(layer for layer in context.wanted if layer not in seen)
        context.calibration = CalibrationFacts(run.samples, run.batches, unseen, run.held_out)
        context.report([*map(_unseen_finding, unseen), *map(_fitted_finding, listening.measured_on_fitted())])
        if len(waves) > 1:
            context.report([_waves_finding(len(waves), self.statistics_bytes)])


class _Run:
    """Runs the data, as often as it takes."""

    def __init__(self, context: QuantContext, data: Batches, progress: bool | Progress) -> None:
        self._context, self._data, self._progress = context, data, progress
        self._first_parts: list[Part] = []
        self.samples = self.batches = self.held_out = 0

    def over(
        self, weights: list[WatchedWeight], listening: Listening | None = None, origins: OriginWatch | None = None
    ) -> Collected:
        """Run all data once, and collect the statistics of some weights.

        Args:
            weights: Those of one wave.
            listening: What else listens; None for nothing.
            origins: What else watches; None for nothing.
        """
        model = self._context.model
        collector = MomentCollector(self._context.wanted_moments)
        watched = ProductWatch(weights, collector).watching(model.modules()) if weights else nullcontext()
        modules = {name: self._context.module(name) for name in self._context.wanted}
        hooks = listening.listening(modules) if listening else nullcontext()
        follows = origins.watching(model.modules()) if origins else nullcontext()
        if listening and origins:
            listening.apart = origins.paused
        with undisturbed(model), hooks, watched, follows:
            self._feed(model, [collector, *([listening] if listening else [])], origins)
        return collector.finish(weights)

    def _feed(self, model: nn.Module, listeners: list[Any], origins: OriginWatch | None) -> None:
        show = _progress_function(self._progress)
        self.samples = self.held_out = 0
        self._first_parts = []
        try:
            for part in self._data.parts(hold_out=bool(self._context.wanted_moments)):
                for listener in listeners:
                    listener.held_out, listener.counted = part.held_out, part.counted
                answer = run_model(model, part, self._data.forward)
                if origins:
                    origins.end_call(answer)
                self._count(part)
                if part.ends_batch:
                    show(self.samples, self._data.most)
        finally:
            if self._progress is True:
                sys.stderr.write("\n")

    def probed(self, modules: Mapping[str, nn.Module]) -> GradientProbe:
        """Go backward through the model for some of the samples that the last run began with.

        Args:
            modules: Whose outputs matter, by name.
        """
        probe = GradientProbe(modules)
        model, forward = self._context.model, self._data.forward
        with undisturbed(model):
            pieces = (piece for part in self._first_parts for piece in self._data.pieces(part, _PROBED_AT_ONCE))
            samples = 0
            for piece in pieces:
                probe.probe(partial(run_model, model, piece, forward))
                samples += piece.samples
                if samples >= _PROBED_SAMPLES or probe.rows >= _PROBED_ROWS:
                    break
        return probe

    def _count(self, part: Part) -> None:
        if not part.held_out and sum(one.samples for one in self._first_parts) < _PROBED_SAMPLES:
            self._first_parts.append(part)
        self.samples += part.samples
        self.held_out += part.samples * part.held_out
        self.batches = part.index + 1


def _progress_function(progress: bool | Progress) -> Progress:
    if callable(progress):
        return progress
    return _write_progress if progress else lambda _samples, _wanted: None


def _write_progress(samples: int, wanted: int) -> None:
    sys.stderr.write(f"\rcalibrating: {samples} of at most {wanted} samples")
    sys.stderr.flush()


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
