"""Group-wise INT4 quantization of PyTorch models that says what it did, measures what it cost, and can fail a build.

- Call: :func:`quantize`, :func:`static_quantize`, :func:`get_layers_to_skip`.
- Compose: :class:`Quantizer` with passes (:class:`CalibrationPass`, :class:`SkipSelectionPass`,
  :class:`Int4PackPass`, :class:`ValidationPass`, :class:`AccuracyWarningPass`, or subclasses of :class:`Pass`).
- Choose layers: :class:`TypeRule`, :class:`NameRule`, :class:`ThresholdRule`, or subclasses of :class:`SkipRule`.
- Judge: :func:`validate_quantization`, :func:`check_accuracy_warnings`, or subclasses of :class:`WarningCheck`.
- Keep: :func:`save`, :func:`load`, :func:`load_report`.
- Extend: :data:`hookimpl` marks a plugin's functions.
"""

from importlib.metadata import version as _version

from monoquant.api import check_accuracy_warnings, get_layers_to_skip, quantize, static_quantize
from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.context import QuantContext
from monoquant.errors import (
    AccuracyError,
    AccuracyWarning,
    ConfigError,
    FileError,
    InputError,
    MonoquantError,
    PassError,
    PluginError,
    ValidationError,
)
from monoquant.formats.native import load, load_report, save
from monoquant.hooks import PluginManager, hookimpl
from monoquant.modules.int4_linear import Int4Linear
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.base import PackPass, Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.validation import ValidationPass
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.registry import Registered, Registry
from monoquant.report import CalibrationFacts, LayerReport, QuantizationInfo, QuantReport, ValidationResult
from monoquant.rules import (
    DEFAULT_INT4_SKIP,
    AllRule,
    AnyRule,
    NameRule,
    NotRule,
    SkipRule,
    ThresholdRule,
    TypeRule,
)
from monoquant.validate import validate_quantization
from monoquant.values import Action, Ancestor, Decision, Finding, Layer, Origin, Scheme, Severity

__version__ = _version("monoquant")

__all__ = [
    "DEFAULT_INT4_SKIP",
    "AccuracyError",
    "AccuracyGate",
    "AccuracyWarning",
    "AccuracyWarningPass",
    "Action",
    "AllRule",
    "Ancestor",
    "AnyRule",
    "CalibrationFacts",
    "CalibrationPass",
    "ConfigError",
    "Decision",
    "FileError",
    "Finding",
    "InputError",
    "Int4Linear",
    "Int4PackPass",
    "Layer",
    "LayerReport",
    "MonoquantError",
    "NameRule",
    "NotRule",
    "Origin",
    "PackPass",
    "Pass",
    "PassError",
    "PluginError",
    "PluginManager",
    "QuantContext",
    "QuantReport",
    "QuantResult",
    "QuantizationInfo",
    "Quantizer",
    "Registered",
    "Registry",
    "Scheme",
    "Severity",
    "SkipRule",
    "SkipSelectionPass",
    "ThresholdRule",
    "TypeRule",
    "ValidationError",
    "ValidationPass",
    "ValidationResult",
    "WarningCheck",
    "check_accuracy_warnings",
    "get_layers_to_skip",
    "hookimpl",
    "load",
    "load_report",
    "quantize",
    "save",
    "static_quantize",
    "validate_quantization",
]
