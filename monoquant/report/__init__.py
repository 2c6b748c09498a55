"""What a run found out: records per layer, the whole report, and the short summary."""

from monoquant.report.info import QuantizationInfo
from monoquant.report.quant_report import QuantReport
from monoquant.report.records import CalibrationFacts, ComparisonResult, LayerReport, ValidationResult
from monoquant.report.reporters import Reporter
from monoquant.report.tradeoff import Tradeoff

__all__ = [
    "CalibrationFacts",
    "ComparisonResult",
    "LayerReport",
    "QuantReport",
    "QuantizationInfo",
    "Reporter",
    "Tradeoff",
    "ValidationResult",
]
