"""The short summary of a run, in the words that existing users know."""

from __future__ import annotations

from typing import Literal

import attrs
import torch

from monoquant.report.quant_report import QuantReport
from monoquant.report.records import LayerReport
from monoquant.values import INT4, Action, AnyScheme, HalfScheme

MEBIBYTE = 1 << 20


@attrs.frozen
class QuantizationInfo:
    """Which layers were quantized, and what it cost.

    Args:
        selected_layers: Names of the quantized layers.
        skipped_layers: Names of the layers that a rule kept in float.
        calibration_samples_used: Samples seen in calibration; 0 without calibration.
        dtype: torch.int4, torch.int8, torch.float16 or torch.bfloat16: what most layers were reduced to.
        symmetric: Whether codes are symmetric around zero.
        sqnr_db: Median layer-output SQNR where outputs were measured, else pooled weight SQNR; dB. None: not measured.
        original_size_mb: MiB of all parameters and buffers before; None: not measured.
        quantized_size_mb: MiB of all parameters and buffers after; None: not measured.
        compression_ratio: Before divided by after; None: not measured.
        warnings: Texts for people; ``check_accuracy_warnings`` adds to this list.
        sqnr_kind: ``"output"`` or ``"weight"``: what ``sqnr_db`` was measured on; None if unknown.
        layers: One record per layer; empty for an info built by hand.
        unsupported_layers: Names of the layers that could not be packed.
    """

    selected_layers: list[str]
    skipped_layers: list[str]
    calibration_samples_used: int
    dtype: torch.dtype
    symmetric: bool
    sqnr_db: float | None = None
    original_size_mb: float | None = None
    quantized_size_mb: float | None = None
    compression_ratio: float | None = None
    warnings: list[str] = attrs.field(factory=list)
    sqnr_kind: Literal["output", "weight"] | None = None
    layers: tuple[LayerReport, ...] = attrs.field(default=(), repr=False)
    unsupported_layers: list[str] = attrs.field(factory=list)

    @classmethod
    def from_report(cls, report: QuantReport) -> QuantizationInfo:
        """Summarize a report.

        Args:
            report: The report; sizes and SQNR are taken from its validation and are None without one.

        Returns:
            The summary, its ``warnings`` empty.
        """
        names = {action: [record.layer for record in report.by_action(action)] for action in Action}
        validation = report.validation
        measured_outputs = any(record.output_sqnr_db is not None for record in report.layers)
        return cls(
            selected_layers=names[Action.QUANTIZE],
            skipped_layers=names[Action.SKIP],
            unsupported_layers=names[Action.UNSUPPORTED],
            calibration_samples_used=report.calibration.samples if report.calibration else 0,
            dtype=dtype_of(report.scheme),
            symmetric=report.scheme.symmetric,
            sqnr_db=validation.sqnr_db if validation else None,
            sqnr_kind=None if validation is None else ("output" if measured_outputs else "weight"),
            original_size_mb=validation.original_size_mb if validation else None,
            quantized_size_mb=validation.quantized_size_mb if validation else None,
            compression_ratio=validation.compression_ratio if validation else None,
            layers=report.layers,
        )


def dtype_of(scheme: AnyScheme) -> torch.dtype:
    """The dtype that stands for a representation.

    Args:
        scheme: The representation.

    Returns:
        torch.int4, torch.int8, torch.float16 or torch.bfloat16.
    """
    if isinstance(scheme, HalfScheme):
        return scheme.dtype
    return INT4 if scheme.bits == 4 else torch.int8
