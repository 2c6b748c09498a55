"""What a run found out: records per layer, the whole report, and the short summary."""

from monoquant.report.comparing import compare_reports
from monoquant.report.difference import ReportDifference
from monoquant.report.info import QuantizationInfo
from monoquant.report.quant_report import QuantReport
from monoquant.report.records import CalibrationFacts, ComparisonResult, LayerReport, ValidationResult
from monoquant.report.reporters import Reporter
from monoquant.report.tradeoff import Tradeoff
from monoquant.report.weight_difference import WeightDifference, compare_weights

__all__ = [
    "CalibrationFacts",
    "ComparisonResult",
    "LayerReport",
    "QuantReport",
    "QuantizationInfo",
    "ReportDifference",
    "Reporter",
    "Tradeoff",
    "ValidationResult",
    "WeightDifference",
    "compare_reports",
    "compare_weights",
]
