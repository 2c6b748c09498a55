"""The whole report of a run."""

from __future__ import annotations

from typing import Any

import attrs

from monoquant.errors import FileError
from monoquant.report.plain import from_plain, to_plain
from monoquant.report.records import CalibrationFacts, LayerReport, ValidationResult
from monoquant.report.table import render
from monoquant.values import Action, Finding, Scheme

REPORT_VERSION = 1


@attrs.frozen
class QuantReport:
    """Everything that was decided and measured in one run; ``print`` it for a table, worst layers first.

    Args:
        scheme: The scheme that was asked for.
        layers: One record per layer, in model order; together they own every parameter.
        findings: What a person should know, worst first.
        original_bytes: Bytes of all parameters and buffers before, shared memory counted once.
        quantized_bytes: The same after.
        pooled_weight_sqnr_db: SQNR of all packed weights together in dB; None if not measured.
        calibration: Calibration facts; None if there was no calibration.
        validation: The validation; None if there was none.
        versions: Pairs of package and version: monoquant, torch, active plugins.
    """

    scheme: Scheme
    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]
    original_bytes: int
    quantized_bytes: int
    pooled_weight_sqnr_db: float | None = None
    calibration: CalibrationFacts | None = None
    validation: ValidationResult | None = None
    versions: tuple[tuple[str, str], ...] = ()

    def by_action(self, action: Action) -> tuple[LayerReport, ...]:
        """Records of the layers with one kind of decision, in model order.

        Args:
            action: quantize, skip or unsupported.
        """
        return tuple(record for record in self.layers if record.action is action)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values.

        Returns:
            A dict with a ``version`` key; fields that hold their default are left out, inf and nan are strings.
        """
        return {"version": REPORT_VERSION, **to_plain(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantReport:
        """Undo :meth:`to_dict`.

        Args:
            data: What :meth:`to_dict` returned, possibly through JSON.

        Raises:
            FileError: For another version, a missing or unknown field, or a value of the wrong kind.
        """
        fields = dict(data)
        version = fields.pop("version", None)
        if version != REPORT_VERSION:
            raise FileError(f"report version {version!r}: this monoquant reads version {REPORT_VERSION}")
        return from_plain(cls, fields)

    def __str__(self) -> str:
        return render(self)
