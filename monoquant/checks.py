"""Warning checks: what a run's summary says about lost accuracy, as findings."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from monoquant.errors import ConfigError
from monoquant.modules.packed_matrix import storage_bytes
from monoquant.report import LayerReport, QuantizationInfo
from monoquant.report.table import format_bytes
from monoquant.rules import INT4_SKIP_THRESHOLD
from monoquant.values import Finding, Scheme, Severity

GOOD_SQNR_DB = 30.0
FORMAT_MARGIN_DB = 3.0
FEW_SAMPLES = 50
ENOUGH_SAMPLES = 100
_NAMED_LAYERS = 3
_SMALLER_GROUP = 32
_RISKY_BITS = 4


def _check_order(gate: AccuracyGate, _attribute: Any, _value: Any) -> None:
    low, high = gate.sqnr_error_threshold, gate.sqnr_warning_threshold
    for name, value in (("sqnr_error_threshold", low), ("sqnr_warning_threshold", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name}={value!r}: give a finite number of decibels")
    if low > high:
        raise ConfigError(
            f"sqnr_error_threshold={low} is above sqnr_warning_threshold={high}: the error threshold is the lower one"
        )


@attrs.frozen
class AccuracyGate:
    """The thresholds of the quality gate; both are compared with a strict ``<``.

    Args:
        sqnr_warning_threshold: Below this many dB a layer is worth a warning; default 20.
        sqnr_error_threshold: Below this many dB a layer is CRITICAL; default 10.
    """

    sqnr_warning_threshold: float = 20.0
    sqnr_error_threshold: float = attrs.field(default=10.0, validator=_check_order)


class WarningCheck(abc.ABC):
    """Base of all checks.

    A check is a frozen value, judges any run, and leaves the summary alone: figures may be None (not measured), NaN or
    infinite. ``monoquant.testing.WarningCheckConformance`` tests all of this.
    """

    @abc.abstractmethod
    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        """Judge a run.

        Args:
            info: The run's summary; ``info.layers`` holds a record per layer unless it was built by hand.
            gate: The thresholds in force.

        Returns:
            Findings, the worst first, each with a stable code. The severity decides what happens: WARNING is told,
            CRITICAL fails a build that asks for it.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@attrs.frozen
class SqnrCheck(WarningCheck):
    """Judge each measured layer, or the one figure of an info built by hand.

    Outputs are held against the gate. Weights are held against what their format reaches on Gaussian weights, since
    round-to-nearest INT4 cannot pass 20 dB there; below the error threshold both are CRITICAL.
    """

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        measured = [record for record in info.layers if record.sqnr_db is not None]
        if not measured:
            return _judge_model(info.sqnr_db, gate)
        good = [] if info.sqnr_db is None else _praise(info.sqnr_db)
        return [
            *_critical(measured, info, gate),
            *_low_outputs(measured, info, gate),
            *_below_format(measured, gate),
            *good,
        ]


def _judge_model(sqnr_db: float | None, gate: AccuracyGate) -> list[Finding]:
    if sqnr_db is None:
        return []
    if math.isnan(sqnr_db) or sqnr_db < gate.sqnr_error_threshold:
        message = f"CRITICAL: Very low SQNR ({sqnr_db:.2f} dB). Significant accuracy loss likely."
        remedy = "Consider INT8 or skipping more layers."
        return [Finding("sqnr-critical", Severity.CRITICAL, message, remedy=remedy)]
    if sqnr_db < gate.sqnr_warning_threshold:
        message = f"Warning: Low SQNR ({sqnr_db:.2f} dB). Quantization may impact accuracy."
        remedy = "Verify with task-specific evaluation."
        return [Finding("sqnr-low", Severity.WARNING, message, remedy=remedy)]
    return _praise(sqnr_db)


def _praise(sqnr_db: float) -> list[Finding]:
    if not sqnr_db > GOOD_SQNR_DB:
        return []
    return [Finding("sqnr-good", Severity.INFO, f"SQNR of {sqnr_db:.2f} dB is good.")]


def _worst_measure(record: LayerReport) -> tuple[float, str]:
    measures = [(record.output_sqnr_db, "output"), (record.weight_sqnr_db, "weight")]
    known = [(value, what) for value, what in measures if value is not None]
    return min(known, key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])


def _critical(records: list[LayerReport], info: QuantizationInfo, gate: AccuracyGate) -> list[Finding]:
    failing = [(*_worst_measure(record), record) for record in records]
    failing = [item for item in failing if math.isnan(item[0]) or item[0] < gate.sqnr_error_threshold]
    remedy = _remedy([record for value, _, record in _worst_first(failing) if not math.isnan(value)], info)
    return [
        Finding(
            "sqnr-critical",
            Severity.CRITICAL,
            f"CRITICAL: Very low SQNR ({value:.2f} dB) of the {what} of layer {record.name!r}. "
            "Significant accuracy loss likely.",
            record.layer,
            "Look for NaN or Inf in the inputs that calibration gave it." if math.isnan(value) else remedy,
        )
        for value, what, record in _worst_first(failing)
    ]


def _low_outputs(records: list[LayerReport], info: QuantizationInfo, gate: AccuracyGate) -> list[Finding]:
    outputs = [(record.output_sqnr_db, "output", record) for record in records if record.output_sqnr_db is not None]
    low = [item for item in outputs if gate.sqnr_error_threshold <= item[0] < gate.sqnr_warning_threshold]
    remedy = _remedy([record for *_, record in _worst_first(low)], info)
    return [
        Finding(
            "sqnr-low",
            Severity.WARNING,
            f"Warning: Low SQNR ({value:.2f} dB) of the output of layer {record.name!r}. "
            "Quantization may impact accuracy.",
            record.layer,
            f"Verify with task-specific evaluation. {remedy}",
        )
        for value, _, record in _worst_first(low)
    ]


def _below_format(records: list[LayerReport], gate: AccuracyGate) -> list[Finding]:
    findings = []
    for record in sorted(records, key=_shortfall, reverse=True):
        value, reference = record.weight_sqnr_db, record.reference_sqnr_db
        if record.output_sqnr_db is not None or (value is not None and value > GOOD_SQNR_DB):
            continue  # outputs are what counts, where they are known; and good is good enough
        if value is None or reference is None or not gate.sqnr_error_threshold <= value < reference - FORMAT_MARGIN_DB:
            continue
        message = (
            f"Warning: Weight SQNR ({value:.2f} dB) of layer {record.name!r} is {reference - value:.1f} dB under what "
            f"{record.scheme} reaches on Gaussian weights ({reference:.2f} dB)."
        )
        remedy = "Look for outliers in its weights, use a smaller group_size, or keep it in float."
        findings.append(Finding("sqnr-below-format", Severity.WARNING, message, record.layer, remedy))
    return findings


def _shortfall(record: LayerReport) -> float:
    if record.weight_sqnr_db is None or record.reference_sqnr_db is None:
        return -math.inf
    return record.reference_sqnr_db - record.weight_sqnr_db


def _worst_first(items: list[tuple[float, str, LayerReport]]) -> list[tuple[float, str, LayerReport]]:
    return sorted(items, key=lambda item: -math.inf if math.isnan(item[0]) else item[0])


def _remedy(failing: Sequence[LayerReport], info: QuantizationInfo) -> str:
    if not failing:
        return ""
    worst = failing[:_NAMED_LAYERS]
    cost = format_bytes(sum(record.bytes_before - record.bytes_after for record in worst))
    names = [record.layer for record in worst]
    what = "it" if len(failing) == 1 else "them" if len(failing) == len(worst) else "the worst"
    ways = [f"keep {what} in float with skip_layer_names={names} (+{cost})"] if all(names) else []
    scheme = failing[0].scheme
    if isinstance(scheme, Scheme) and scheme.bits == 4:
        ways.append("reduce less with skip_to='int8'" if ways else "use bits=8")
    if isinstance(scheme, Scheme) and scheme.activations is None and (scheme.group_size or math.inf) > _SMALLER_GROUP:
        extra = format_bytes(_price_of_smaller_groups(info, scheme))
        ways.append(f"use group_size={_SMALLER_GROUP} (+{extra})")
    text = ", or ".join(ways) or "calibrate with more data, or leave the model in float"
    return f"{text[0].upper()}{text[1:]}."


def _price_of_smaller_groups(info: QuantizationInfo, scheme: Scheme) -> int:
    smaller = attrs.evolve(scheme, group_size=_SMALLER_GROUP)
    matrices = [matrix for record in info.layers if record.scheme == scheme for matrix in record.matrices]
    return sum(storage_bytes(*matrix, smaller) - storage_bytes(*matrix, scheme) for matrix in matrices)


@attrs.frozen
class AllLayersCheck(WarningCheck):
    """Tell when nothing that could be reduced to 4 bits was kept, or reduced less; with more bits that is no risk."""

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        if not info.selected_layers or not _risked_something(info) or _kept_something(info):
            return []
        message = "All layers were quantized."
        remedy = "For INT4, consider skipping embeddings, the output layer and other sensitive layers to keep accuracy."
        return [Finding("all-layers-quantized", Severity.WARNING, message, remedy=remedy)]


def _risked_something(info: QuantizationInfo) -> bool:
    schemes = [record.scheme for record in info.layers if record.scheme is not None]
    return not info.layers or any(scheme.bits <= _RISKY_BITS for scheme in schemes)


def _kept_something(info: QuantizationInfo) -> bool:
    if not info.layers:
        return bool(info.skipped_layers)
    kept = [record for record in info.layers if record.scheme is None or record.scheme.bits > _RISKY_BITS]
    return any(len(record.shape) >= 2 and record.parameters >= INT4_SKIP_THRESHOLD for record in kept)


@attrs.frozen
class NoLayersCheck(WarningCheck):
    """Tell when nothing was quantized at all."""

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        if info.selected_layers:
            return []
        message = "Warning: No layers were quantized."
        return [Finding("no-layers-quantized", Severity.WARNING, message, remedy="Look at the skip rules in the plan.")]


@attrs.frozen
class CalibrationCheck(WarningCheck):
    """Tell when calibration data was used, but little of it."""

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        if not 0 < info.calibration_samples_used < FEW_SAMPLES:
            return []
        message = f"Low calibration sample count ({info.calibration_samples_used})."
        remedy = f"Recommend at least {ENOUGH_SAMPLES} samples for reliable calibration."
        return [Finding("low-calibration", Severity.WARNING, message, remedy=remedy)]


BUILT_IN_CHECKS: tuple[WarningCheck, ...] = (SqnrCheck(), AllLayersCheck(), NoLayersCheck(), CalibrationCheck())
