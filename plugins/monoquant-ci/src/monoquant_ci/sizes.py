"""The model's size then and now."""

from __future__ import annotations

from monoquant import Finding, QuantizationInfo, QuantReport, Severity

from monoquant_ci.layers import NEW_BASELINE, decimal

MEBIBYTE = 1 << 20


def judge_size(report: QuantReport, info: QuantizationInfo, tolerance_percent: float, source: str) -> list[Finding]:
    """Hold the bytes of all parameters and buffers against those in the baseline.

    Args:
        report: The baseline.
        info: The run's summary.
        tolerance_percent: How much a quantized model may grow.
        source: What the baseline is called.

    Returns:
        One finding: CRITICAL where it grew by more, INFO where it did not, where the float model has another size, or
        where sizes were not measured.
    """
    if info.original_size_mb is None or info.quantized_size_mb is None:
        message = f"The model's size was not measured, nor compared with {source}."
        return [Finding("baseline-size-not-measured", Severity.INFO, message, remedy="Run with validation.")]
    before, after = round(info.original_size_mb * MEBIBYTE), round(info.quantized_size_mb * MEBIBYTE)
    if before != report.original_bytes:
        message = (
            f"The float model has {before:,} bytes, and {report.original_bytes:,} in {source}; the quantized sizes "
            "were not compared."
        )
        return [Finding("baseline-size-of-another-model", Severity.INFO, message, remedy=NEW_BASELINE)]
    if after * 100 <= report.quantized_bytes * (100 + decimal(tolerance_percent)):
        message = f"The quantized model has {after:,} bytes, and {report.quantized_bytes:,} in {source}."
        return [Finding("baseline-size-compared", Severity.INFO, message)]
    message = (
        f"CRITICAL: The quantized model has {after:,} bytes, {after - report.quantized_bytes:,} more than in {source}; "
        f"{tolerance_percent:g} % are tolerated."
    )
    return [Finding("baseline-size", Severity.CRITICAL, message, remedy=NEW_BASELINE)]
