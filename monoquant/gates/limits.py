"""Limits that a layer or the whole model must keep to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.modules.storage import content_bytes
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.report import LayerReport, QuantizationInfo
from monoquant.report.layer_difference import measured
from monoquant.report.table import format_bytes
from monoquant.values import Finding, Severity

_MEASURE = "Let validation run; what was not measured cannot pass."
_NAMED = 3


@attrs.frozen
class LayerSqnrCheck(WarningCheck):
    """Every quantized layer reaches an SQNR: of its output where that was measured, else of its weight.

    Args:
        least_db: What it must reach; dB.
    """

    least_db: float

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        quantized = [record for record in info.layers if record.scheme is not None]
        known = [record for record in quantized if record.sqnr_db is not None]
        if len(known) < len(quantized) or not quantized:
            yield _not_measured("min_layer_sqnr_db", _missing(len(quantized) - len(known), len(quantized)))
        for record in sorted(known, key=_rank):
            kind, value = measured(record)
            if not value >= self.least_db:
                yield Finding(
                    "gate-layer-sqnr",
                    Severity.CRITICAL,
                    f"CRITICAL: SQNR of the {kind} of layer {record.name!r} is {value:.2f} dB{_unheard(kind, info)}; "
                    f"min_layer_sqnr_db={self.least_db:g}.",
                    record.layer,
                    "Keep it in float or in INT8, use smaller groups, or fit codes to calibration data.",
                )


def _missing(unknown: int, quantized: int) -> str:
    return (
        f"{unknown} of {quantized} quantized layers were not measured" if quantized else "no quantized layer is known"
    )


def _rank(record: LayerReport) -> float:
    value = measured(record)[1]
    return -math.inf if math.isnan(value) else value


def _unheard(kind: str | None, info: QuantizationInfo) -> str:
    return ", its output was not measured" if kind == "weight" and info.calibration_samples_used else ""


@attrs.frozen
class ModelSqnrCheck(WarningCheck):
    """The model reaches an SQNR: the median of layer outputs where they were measured, else that of all weights.

    Args:
        least_db: What it must reach; dB.
    """

    least_db: float

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        if info.sqnr_db is None:
            return [_not_measured("min_model_sqnr_db", "SQNR was not measured")]
        if info.sqnr_db >= self.least_db:
            return []
        what = {"output": "median SQNR of layer outputs", "weight": "SQNR of all weights together", None: "SQNR"}
        message = (
            f"CRITICAL: The model's {what[info.sqnr_kind]} is {info.sqnr_db:.2f} dB; "
            f"min_model_sqnr_db={self.least_db:g}."
        )
        remedy = "Use smaller groups or more bits, or fit codes to calibration data."
        return [Finding("gate-model-sqnr", Severity.CRITICAL, message, remedy=remedy)]


@attrs.frozen
class BitsPerWeightCheck(WarningCheck):
    """Packed weights take no more bits than this, scales and zero points included.

    Args:
        most: Bits per weight.
    """

    most: float

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        packed = [record for record in info.layers if record.matrices]
        count = sum(rows * columns for record in packed for rows, columns in record.matrices)
        if not count:
            return [_not_measured("max_bits_per_weight", "no packed weight is known")]
        bits = 8 * sum(map(packed_bytes, packed)) / count
        if bits <= self.most:
            return []
        message = f"CRITICAL: Packed weights take {bits:.3f} bits each; max_bits_per_weight={self.most:g}."
        remedy = f"Use larger groups or fewer bits{_largest(packed)}."
        return [Finding("gate-bits-per-weight", Severity.CRITICAL, message, remedy=remedy)]


def packed_bytes(record: LayerReport) -> int:
    """Bytes of a layer's packed weights, counted as budgets count them.

    Args:
        record: A layer's.

    Returns:
        0 where it stayed float.
    """
    scheme = record.scheme
    return 0 if scheme is None else sum(content_bytes(MatrixForm.rows_first(one), scheme) for one in record.matrices)


def _largest(packed: Sequence[LayerReport]) -> str:
    most = max(record.scheme.bits for record in packed if record.scheme is not None)
    names = [record.name for record in packed if record.scheme is not None and record.scheme.bits == most]
    if len(names) == len(packed):
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f", in {', '.join(map(repr, names[:_NAMED]))}{more} say, which have {most}"


@attrs.frozen
class CompressionCheck(WarningCheck):
    """The model, all parameters and buffers, becomes so many times smaller.

    Args:
        least: How many times.
    """

    least: float

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        if info.compression_ratio is None:
            return [_not_measured("min_compression", "the model's size was not measured")]
        if info.compression_ratio >= self.least:
            return []
        message = f"CRITICAL: The model is {info.compression_ratio:.2f}x smaller; min_compression={self.least:g}."
        kept = [record for record in info.layers if record.scheme is None]
        size = format_bytes(sum(record.bytes_after for record in kept))
        remedy = f"Quantize more: {len(kept)} layers of {size} stayed float. Or use fewer bits."
        return [Finding("gate-compression", Severity.CRITICAL, message, remedy=remedy)]


def _not_measured(limit: str, what: str) -> Finding:
    message = f"CRITICAL: {limit} has nothing to judge: {what}."
    return Finding("gate-not-measured", Severity.CRITICAL, message, remedy=_MEASURE)
