"""Run calibration data through the model, and collect what later passes asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import attrs
from torch import nn

from monoquant.batches import Batches, Forward, Part, check_forward, check_select, require_batches, run_model
from monoquant.context import QuantContext
from monoquant.errors import ConfigError, InputError, quoted
from monoquant.passes.base import Pass
from monoquant.report import CalibrationFacts
from monoquant.report.table import format_bytes
from monoquant.restoring import undisturbed
from monoquant.statistics.collector import MomentCollector
from monoquant.statistics.gradients import GradientProbe
from monoquant.statistics.listening import Listening
from monoquant.statistics.store import Collected, Key, StatisticsStore, in_waves
from monoquant.statistics.watch import ProductWatch
from monoquant.values import Finding, Severity

Progress = Callable[[int, int], None]
_PROBED_SAMPLES = 64
_PROBED_ROWS = 1024
"""So many rows of output, tokens say, are enough to rank layers; so many samples are where each is one row."""
_PROBED_AT_ONCE = 8
"""Going backward keeps what every layer computed for so many samples."""


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
        run = _Run(context, data.kept() if len(waves) > 1 else data, self.progress)
        listening = Listening(context.wanted, honest=bool(weights))
        first = run.over(waves[0], listening)
        if context.weighs_rows:
            context.gradients = run.probe
        elif context.wanted_gradients:
            context.gradients = run.probed({name: context.module(name) for name in sorted(context.wanted_gradients)})
        context.statistics = StatisticsStore(waves, run.over, first)
        context.observed = listening.fulfilled()
        seen = {layer for layer, _ in context.observed}
        unseen = tuple(layer for layer in context.wanted if layer not in seen)
        context.calibration = CalibrationFacts(run.samples, run.batches, unseen, run.held_out)
        context.report([*map(_unseen_finding, unseen), *map(_fitted_finding, listening.measured_on_fitted())])
        if context.weighs_rows and not run.probe.found:
            context.report([_UNWEIGHED])
        if len(waves) > 1:
            context.report([_waves_finding(len(waves), self.statistics_bytes)])


class _CannotCutError(Exception):
    """The model fails on a part of the first batch."""

    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.batch = batch


class _Run:
    """Runs the data, as often as it takes."""

    def __init__(self, context: QuantContext, data: Batches, progress: bool | Progress) -> None:
        self._context, self._data, self._progress = context, data, progress
        self._first_parts: list[Part] = []
        self.probe = GradientProbe({})
        self.samples = self.batches = self.held_out = 0

    def over(self, keys: Collection[Key], listening: Listening | None = None) -> Collected:
        """Run all data once, and collect the statistics of some weights.

        All are watched: the others tell how much the inputs that they share matter.

        Args:
            keys: Those of one wave.
            listening: What else listens; None for nothing.
        """
        try:
            return self._once(keys, listening)
        except _CannotCutError as failure:
            self._data = self._data.left_whole(failure.batch)
            self._context.report([_UNCUT])
        if listening is not None:
            listening.start_again()
        return self._once(keys, listening)

    def _once(self, keys: Collection[Key], listening: Listening | None) -> Collected:
        model, weights = self._context.model, self._context.watched_weights()
        heard_at = {one.layer: one.heard_at for one in weights if one.heard_at is not None}
        collector = MomentCollector(self._context.wanted_moments, keys, heard_at)
        watched = ProductWatch(weights, collector) if weights else None
        modules = {name: self._context.module(name) for name in self._context.wanted}
        hooks = listening.listening(modules) if listening else nullcontext()
        heard = {name: self._context.module(name) for name in sorted(self._context.wanted_gradients)}
        self.probe = GradientProbe(heard)
        with undisturbed(model), hooks:
            self._feed(model, watched, [collector, *([listening] if listening else [])])
        self._context.report([*map(_padding_finding, sorted(collector.maybe_padded))])
        return collector.finish([one for one in weights if (one.layer, one.name) in keys])

    def _feed(self, model: nn.Module, watch: ProductWatch | None, listeners: list[Any]) -> None:
        show = _progress_function(self._progress)
        self.samples = self.held_out = 0
        self._first_parts = []
        try:
            for part in self._data.parts(hold_out=bool(self._context.wanted_moments)):
                for piece in self._pieces(part):
                    for listener in listeners:
                        listener.held_out, listener.counted = piece.held_out, piece.counted
                    self._run_piece(model, piece, watch, listeners[0])
                self._count(part)
                if part.ends_batch:
                    show(self.samples, self._data.most)
        finally:
            if self._progress is True:
                sys.stderr.write("\n")

    def _pieces(self, part: Part) -> Iterable[Part]:
        return self._data.pieces(part, _PROBED_AT_ONCE) if self._weighs(part) else [part]

    def _weighs(self, part: Part) -> bool:
        return self._context.weighs_rows and not part.held_out

    def _run_piece(self, model: nn.Module, piece: Part, watch: ProductWatch | None, collector: MomentCollector) -> None:
        try:
            self._run_once(model, piece, watch, collector)
        except InputError as error:
            if piece.is_cut and piece.index == 0:  # what the batch leads with may be no samples: nodes of a graph, say
                raise _CannotCutError(piece.batch) from error
            raise

    def _run_once(self, model: nn.Module, piece: Part, watch: ProductWatch | None, collector: MomentCollector) -> None:
        def run() -> Any:
            with watch.watching(model.modules()) if watch else nullcontext():
                return run_model(model, piece, self._data.forward)

        collector.weighed = self._weighs(piece)
        if not collector.weighed:
            run()
            return
        try:
            self.probe.probe(run, piece.counted)
        except Exception:  # a forward that autograd refuses may well run without it; other failures will come again
            collector.forget()
            collector.weighed = False
            run()
            self._context.report([_UNWEIGHED])
            return
        collector.weigh(self.probe.row_squares)

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


_UNCUT = Finding(
    "batches-not-cut",
    Severity.INFO,
    "The model cannot take a part of a batch, so batches are held out whole, and gone through backward at once.",
    remedy="Nothing to do where the batches are graphs, say; give several of them.",
)


def _padding_finding(layer: str) -> Finding:
    message = f"Layer {quoted([layer])} may be fitted to padding: nobody knows which of its rows the mask leaves out."
    return Finding("padding-counted", Severity.INFO, message, layer, "Give batches without padding.")


_UNWEIGHED = Finding(
    "rows-not-weighed",
    Severity.INFO,
    "The model cannot be gone through backward on calibration data, so input rows count alike.",
    remedy="Make its forward differentiable for somewhat better codes.",
)


def _waves_finding(waves: int, limit: int) -> Finding:
    message = f"The data was run {waves} times, because statistics of all layers do not fit into {format_bytes(limit)}."
    return Finding("calibrated-in-waves", Severity.INFO, message, remedy="Raise statistics_bytes to run it once.")
