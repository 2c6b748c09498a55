"""What a run found out: records per layer, the whole report, and the short summary."""

from monoquant.report.info import QuantizationInfo
from monoquant.report.quant_report import QuantReport
from monoquant.report.records import CalibrationFacts, LayerReport, ValidationResult

__all__ = ["CalibrationFacts", "LayerReport", "QuantReport", "QuantizationInfo", "ValidationResult"]
