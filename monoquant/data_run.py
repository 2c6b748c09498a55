"""Run calibration data through a model, as often as it takes, under everything that watches."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

from torch import nn

from monoquant.batches import Batches, Part, run_model
from monoquant.context import QuantContext
from monoquant.errors import InputError, quoted
from monoquant.progress import Progress
from monoquant.restoring import undisturbed
from monoquant.statistics.collector import MomentCollector
from monoquant.statistics.gradients import GradientProbe
from monoquant.statistics.listening import Listening
from monoquant.statistics.origin_watch import OriginWatch
from monoquant.statistics.origins import FoldSites
from monoquant.statistics.store import Collected, Key
from monoquant.statistics.watch import ProductWatch
from monoquant.values import Finding, Severity

_PROBED_SAMPLES = 64
_PROBED_ROWS = 1024
"""So many rows of output, tokens say, are enough to rank layers; so many samples are where each is one row."""
_PROBED_AT_ONCE = 8
"""Going backward keeps what every layer computed for so many samples."""


class _CannotCutError(Exception):
    """The model fails on a part of the first batch."""

    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.batch = batch


class DataRun:
    """Runs the data.

    Args:
        context: Says which weights, modules and gradients are wanted.
        data: Batches; must be kept where they are run more than once.
        progress: True writes a line to stderr, a function is called as ``progress(samples, wanted)``.

    Attributes:
        probe: Gradients seen in the last run.
        fold_sites: Where factors of inputs can be moved to, as the first run saw it.
        samples: Samples of the last run.
        batches: Batches of the last run.
        held_out: Samples that were held out in it.
    """

    def __init__(self, context: QuantContext, data: Batches, progress: bool | Progress) -> None:
        self._context, self._data, self._progress = context, data, progress
        self._speaker = context.speaker  # the data may be run again while another pass works
        self._first_parts: list[Part] = []
        self.probe = GradientProbe({})
        self.fold_sites = FoldSites()
        self.samples = self.batches = self.held_out = 0

    def over(self, keys: Collection[Key], listening: Listening | None = None) -> Collected:
        """Run all data once, and collect the statistics of some weights.

        All are watched: the others tell how much the inputs that they share matter.

        Args:
            keys: Those of one wave.
            listening: What else listens in the first run; None in those that follow.
        """
        try:
            return self._once(keys, listening)
        except _CannotCutError as failure:
            self._data = self._data.left_whole(failure.batch)
            self._context.report([_UNCUT], self._speaker)
        if listening is not None:
            listening.start_again()
        return self._once(keys, listening)

    def _once(self, keys: Collection[Key], listening: Listening | None) -> Collected:
        context, model, weights = self._context, self._context.model, self._context.watched_weights()
        heard_at = {one.layer: one.heard_at for one in weights if one.heard_at is not None}
        collector = MomentCollector(context.wanted_moments, keys, heard_at)
        watch = ProductWatch(weights, collector) if weights else None
        follows = listening is not None and context.wants_fold_sites and bool(weights)
        origins = OriginWatch(model, weights) if follows else None
        modules = {name: context.module(name) for name in context.wanted}
        hooks = listening.listening(modules) if listening else nullcontext()
        if listening and origins:
            listening.apart = origins.paused
        heard = {name: context.module(name) for name in sorted(context.wanted_gradients)}
        self.probe = GradientProbe(heard)
        with undisturbed(model), hooks:
            self._feed(watch, origins, [collector, *([listening] if listening else [])])
        if origins:
            self.fold_sites = origins.found()
        context.report([*map(_padding_finding, sorted(collector.maybe_padded))], self._speaker)
        return collector.finish([one for one in weights if (one.layer, one.name) in keys])

    def _feed(self, watch: ProductWatch | None, origins: OriginWatch | None, listeners: list[Any]) -> None:
        show = _progress_function(self._progress)
        self.samples = self.held_out = 0
        self._first_parts = []
        try:
            for part in self._data.parts(hold_out=bool(self._context.wanted_moments)):
                for piece in self._pieces(part):
                    for listener in listeners:
                        listener.held_out, listener.counted = piece.held_out, piece.counted
                    self._run_piece(piece, watch, origins, listeners[0])
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

    def _run_piece(
        self, piece: Part, watch: ProductWatch | None, origins: OriginWatch | None, collector: MomentCollector
    ) -> None:
        try:
            self._run_once(piece, watch, origins, collector)
        except InputError as error:
            if piece.is_cut and piece.index == 0:  # what the batch leads with may be no samples: nodes of a graph, say
                raise _CannotCutError(piece.batch) from error
            raise

    def _run_once(
        self, piece: Part, watch: ProductWatch | None, origins: OriginWatch | None, collector: MomentCollector
    ) -> None:
        def run() -> Any:
            return self._answer(piece, watch, origins)

        collector.weighed = self._weighs(piece)
        if not collector.weighed:
            run()
            return
        try:
            self.probe.probe(run, piece.counted)
        except Exception:  # a forward that autograd refuses may well run without it; other failures will come again
            collector.forget()
            collector.weighed = False
            if origins is not None:
                origins.forget_call()
            run()
            self._context.report([UNWEIGHED], self._speaker)
            return
        collector.weigh(self.probe.row_squares)

    def _answer(self, piece: Part, watch: ProductWatch | None, origins: OriginWatch | None) -> Any:
        model = self._context.model
        with ExitStack() as stack:
            for one in (watch, origins):  # what computes inputs is followed innermost, and sees the model's work only
                if one is not None:
                    stack.enter_context(one.watching(model.modules()))
            answer = run_model(model, piece, self._data.forward)
        if origins is not None:
            origins.end_call(answer)
        return answer

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


_UNCUT = Finding(
    "batches-not-cut",
    Severity.INFO,
    "The model cannot take a part of a batch, so batches are held out whole, and gone through backward at once.",
    remedy="Nothing to do where the batches are graphs, say; give several of them.",
)


def _padding_finding(layer: str) -> Finding:
    message = f"Layer {quoted([layer])} may be fitted to padding: nobody knows which of its rows the mask leaves out."
    return Finding("padding-counted", Severity.INFO, message, layer, "Give batches without padding.")


UNWEIGHED = Finding(
    "rows-not-weighed",
    Severity.INFO,
    "The model cannot be gone through backward on calibration data, so input rows count alike.",
    remedy="Make its forward differentiable for somewhat better codes.",
)
