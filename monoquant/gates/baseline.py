"""The baseline: no layer worse than in an earlier report, and the model no larger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

import attrs

from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.report import QuantizationInfo, QuantReport
from monoquant.report.comparing import compare_layers
from monoquant.report.info import MEBIBYTE
from monoquant.report.layer_difference import Change, LayerDifference, decimal, measured
from monoquant.report.records import LayerReport
from monoquant.values import Finding, Severity

_COMPARED = ("compared", "scheme-changed")
OF_SIZE = "baseline-size"
"""What codes of findings on the size begin with."""
SIZE_UNCOMPARED = ("baseline-size-not-measured", "baseline-size-of-another-model")
"""Codes of findings that say that the size was not judged."""
NEW_BASELINE = "If that is wanted, write a new baseline."


@attrs.frozen
class Baseline:
    """The report of an earlier release, and where it came from.

    Args:
        report: The report.
        source: Its path, for messages.
    """

    report: QuantReport = attrs.field(repr=False, hash=False)  # holds lists
    source: str = "the baseline"


@attrs.frozen
class BaselineCheck(WarningCheck):
    """No layer lost more than is tolerated, and the model did not grow.

    Like is compared with like only. Layers that are new, gone, of another shape, or that were measured on outputs in
    one run and on weights in the other, are findings of their own. Layers of another scheme are as well, and are held
    against the tolerance where both were measured: fewer bits are a loss, whoever wanted them.

    Args:
        baseline: What to compare with.
        tolerance_db: A layer whose SQNR fell by more than this is CRITICAL; dB. Figures are compared as they are
            written in decimals, so that a fall by exactly the tolerance passes.
        size_tolerance_percent: A model that grew by more than this is CRITICAL.
    """

    baseline: Baseline
    tolerance_db: float = 0.5
    size_tolerance_percent: float = 1.0

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        report, source = self.baseline.report, self.baseline.source
        found = [
            *_judge_layers(compare_layers(report.layers, info.layers), self.tolerance_db, source),
            *_judge_size(report, info, self.size_tolerance_percent, source),
        ]
        return sorted(found, key=lambda finding: -finding.severity)


@attrs.frozen
class _Loss:
    db: Decimal
    layer: LayerDifference


def _judge_layers(layers: Sequence[LayerDifference], tolerance_db: float, source: str) -> list[Finding]:
    losses = [_Loss(one.loss_db, one) for one in layers if one.status in _COMPARED and one.loss_db is not None]
    losses.sort(key=lambda loss: -loss.db)
    beyond = [loss for loss in losses if loss.db > decimal(tolerance_db)]
    return [
        *(_regression(loss, tolerance_db, source) for loss in beyond),
        *(finding for one in layers for finding in _incomparable(one, source)),
        _summary(losses, len(beyond), tolerance_db, source),
    ]


def _regression(loss: _Loss, tolerance_db: float, source: str) -> Finding:
    one = loss.layer
    how = f"{loss.db:.3f} dB less than" if loss.db.is_finite() else "and was"
    message = (
        f"CRITICAL: SQNR of the {one.measured_on} of layer {one.name!r} is {measured(one.after)[1]:.2f} dB, {how} "
        f"{measured(one.before)[1]:.2f} dB in {source}{_circumstances(one)}; {tolerance_db:g} dB are tolerated."
    )
    remedy = f"Look for what has changed in the model, the data, the options or the versions. {NEW_BASELINE}"
    return _finding("regression", Severity.CRITICAL, message, one.layer, remedy)


def _circumstances(one: LayerDifference) -> str:
    """What else is not as it was, and may be the cause."""
    missing = {"algorithm": "no algorithm", "rows": "no"}
    told = [
        f"{change.before or missing[change.what]} {_unit(change)}then, {change.after or missing[change.what]} now"
        for change in one.changes
        if change.what in missing
    ]
    return f" ({'; '.join(told)})" if told else ""


def _unit(change: Change) -> str:
    return "rows " if change.what == "rows" else ""


def _incomparable(one: LayerDifference, source: str) -> list[Finding]:
    """What is to be said of a quantized layer that was not compared."""
    now, then = one.after, one.before
    if one.status in ("compared", "float") or not ((now and now.scheme) or (then and then.scheme)):
        return []
    if now is None:
        return [_gone(one, source)]
    if then is None:
        message = f"Layer {one.name!r} is new: {source} has no figures to compare it with."
        return [_finding("layer-new", Severity.INFO, message, one.layer, "Write a new baseline after the release.")]
    if one.status == "scheme-changed":
        return [_other_scheme(one, then, now, source)]
    if one.status == "layer-changed":
        message = (
            f"Layer {one.name!r} is not the one of {source}: {_matrix(then)} then, {_matrix(now)} now; "
            "SQNR was not compared."
        )
        return [_finding("layer-changed", Severity.WARNING, message, one.layer, NEW_BASELINE)]
    return [_measured_otherwise(then, now, source)]


def _gone(one: LayerDifference, source: str) -> Finding:
    message = f"Layer {one.name!r} of {source} is gone, and was not compared."
    if one.new_name is not None:
        message += f" Perhaps it is called {one.new_name or '(root)'!r} now, which has its kind and shape."
    # It is no layer of this model, so that the finding concerns the whole.
    return _finding("layer-gone", Severity.WARNING, message, None, NEW_BASELINE)


def _other_scheme(one: LayerDifference, then: LayerReport, now: LayerReport, source: str) -> Finding:
    severity = Severity.INFO if now.scheme is None else Severity.WARNING
    uncompared = "; SQNR was not compared" if one.loss_db is None else ""
    message = (
        f"Layer {now.name!r} has another scheme than in {source}: {_scheme(then)} then, {_scheme(now)} now{uncompared}."
    )
    return _finding("scheme-changed", severity, message, now.layer, NEW_BASELINE)


def _measured_otherwise(past: LayerReport, present: LayerReport, source: str) -> Finding:
    (then, _), (now, _) = measured(past), measured(present)
    name = present.name
    if then and now and then != now:
        message = (
            f"Layer {name!r} was measured on its {then} in {source}, and on its {now} now; the two were not compared."
        )
        remedy = "Give calibration data in both runs, or in neither."
        return _finding("measured-otherwise", Severity.WARNING, message, present.layer, remedy)
    if not now:
        message, remedy = f"Layer {name!r} was not measured; {source} says nothing.", "Run with validation."
    else:
        figure = "nan for it" if then else "no SQNR of it"
        message, remedy = f"Layer {name!r} was not compared: {source} has {figure}.", "Write a new baseline."
    return _finding("not-measured", Severity.WARNING, message, present.layer, remedy)


def _summary(losses: Sequence[_Loss], beyond: int, tolerance_db: float, source: str) -> Finding:
    if not losses:
        # A gate that judged nothing must not look like one that was passed.
        message = f"CRITICAL: Not one layer could be compared with {source}."
        remedy = "Give the report of the same model, measured in the same way."
        return _finding("compared-nothing", Severity.CRITICAL, message, None, remedy)
    worst = losses[0]
    most = (
        f"the largest loss is {float(worst.db):.3f} dB, in {worst.layer.name!r}"
        if worst.db > 0
        else "none lost anything"
    )
    message = (
        f"Layers compared with {source}: {len(losses)}, of which {beyond} lost more than {tolerance_db:g} dB; {most}."
    )
    return _finding("compared", Severity.INFO, message, None, "")


def _judge_size(report: QuantReport, info: QuantizationInfo, tolerance_percent: float, source: str) -> list[Finding]:
    """One finding on the bytes of all parameters and buffers."""
    if info.original_size_mb is None or info.quantized_size_mb is None:
        message = f"The model's size was not measured, nor compared with {source}."
        return [_finding("size-not-measured", Severity.WARNING, message, None, "Run with validation.")]
    before, after = round(info.original_size_mb * MEBIBYTE), round(info.quantized_size_mb * MEBIBYTE)
    if before != report.original_bytes:
        message = (
            f"The float model has {before:,} bytes, and {report.original_bytes:,} in {source}; the quantized sizes "
            "were not compared."
        )
        return [_finding("size-of-another-model", Severity.WARNING, message, None, NEW_BASELINE)]
    if after * 100 <= report.quantized_bytes * (100 + decimal(tolerance_percent)):
        message = f"The quantized model has {after:,} bytes, and {report.quantized_bytes:,} in {source}."
        return [_finding("size-compared", Severity.INFO, message, None, "")]
    message = (
        f"CRITICAL: The quantized model has {after:,} bytes, {after - report.quantized_bytes:,} more than in {source}; "
        f"{tolerance_percent:g} % are tolerated."
    )
    return [_finding("size", Severity.CRITICAL, message, None, NEW_BASELINE)]


def _finding(code: str, severity: Severity, message: str, layer: str | None, remedy: str) -> Finding:
    return Finding(f"baseline-{code}", severity, message, layer, remedy)


def _matrix(record: LayerReport) -> str:
    return " ".join((", ".join(record.weights), "x".join(map(str, record.shape))))


def _scheme(record: LayerReport) -> str:
    kind, value = measured(record)
    figure = f" ({kind} {value:.2f} dB)" if kind else ""
    return f"{'float' if record.scheme is None else record.scheme}{figure}"
