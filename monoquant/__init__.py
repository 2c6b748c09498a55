"""INT4, INT8 and 16-bit weights for PyTorch models: says what it did, measures what it cost, and can fail a build.

- Call: :func:`quantize`, :func:`static_quantize`, :func:`dynamic_quantize`, :func:`dequantize`,
  :func:`get_layers_to_skip`.
- Compose: :class:`Quantizer` with passes (:class:`CalibrationPass`, :class:`SkipSelectionPass`,
  :class:`BudgetPass`, :class:`Int4PackPass`, :class:`Int8PackPass`, :class:`HalfCastPass`,
  :class:`ValidationPass`, :class:`AccuracyWarningPass`, or subclasses of :class:`Pass`).
- Choose codes: :class:`RoundToNearest`, :class:`ClipSearch`, :class:`Gptq`, :class:`Awq`, or subclasses of
  :class:`WeightAlgorithm`.
- Choose layers: :class:`TypeRule`, :class:`TypeNameRule`, :class:`NameRule`, :class:`ThresholdRule`, or subclasses of
  :class:`SkipRule`.
- Multiply: :func:`choose_kernels`, or subclasses of :class:`ProductKernel` and :class:`RoundingKernel`.
- Judge: :class:`Gate`, :func:`validate_quantization`, :func:`check_accuracy_warnings`, or subclasses of
  :class:`WarningCheck`.
- Files larger than memory: :func:`quantize_file`.
- Keep: :func:`save`, :func:`load`, :func:`load_report`, :func:`save_report`, :func:`render_report`.
- Compare: :func:`compare_reports` of two runs, :func:`compare_weights` of two models.
- Teach it a kind of module: :class:`ParameterAdapter`, or subclasses of :class:`ModuleAdapter`.
- Test what you add: :mod:`monoquant.testing`.
- Extend: :data:`hookimpl` marks a plugin's functions, which bring any of the above, or :class:`ObserverKind`,
  :class:`Exporter` and :class:`Reporter`; :func:`list_plugins` tells what is there.
"""

from importlib.metadata import version as _version

from monoquant.adapters.base import ModuleAdapter, Obstacle
from monoquant.adapters.parameters import ParameterAdapter
from monoquant.algorithms.awq import Awq
from monoquant.algorithms.base import Needs, Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.api import (
    Gate,
    check_accuracy_warnings,
    choose_kernels,
    dynamic_quantize,
    get_layers_to_skip,
    load,
    load_report,
    quantize,
    quantize_file,
    render_report,
    save,
    save_report,
    static_quantize,
)
from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.comparison import Comparison
from monoquant.context import QuantContext
from monoquant.conversion import dequantize
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
from monoquant.formats.base import Exporter
from monoquant.gates.baseline import Baseline
from monoquant.hooks import PluginInfo, PluginManager, hookimpl, list_plugins
from monoquant.kernels.base import Codes, Kernel, Product, ProductKernel, RoundingKernel
from monoquant.modules.linear import (
    HalfLinear,
    Int4Linear,
    Int8DynamicLinear,
    Int8Linear,
    Int8StaticLinear,
)
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.affine import GroupCodes
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.metrics import Energy
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.base import Pass
from monoquant.passes.budget import BudgetPass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.half_cast import HalfCastPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.int8_pack import Int8PackPass
from monoquant.passes.pack import PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.validation import ValidationPass
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.ranges import ActivationRange, ObserverKind, RangeObserver
from monoquant.registry import Registered, Registry
from monoquant.report import (
    CalibrationFacts,
    ComparisonResult,
    LayerReport,
    QuantizationInfo,
    QuantReport,
    ReportDifference,
    Reporter,
    Tradeoff,
    ValidationResult,
    WeightDifference,
    compare_reports,
    compare_weights,
)
from monoquant.rules import (
    DEFAULT_INT4_SKIP,
    AllRule,
    AnyRule,
    NameRule,
    NotRule,
    SkipRule,
    ThresholdRule,
    TypeNameRule,
    TypeRule,
)
from monoquant.validate import validate_quantization
from monoquant.values import Action, Ancestor, Decision, Finding, HalfScheme, Layer, Origin, Scheme, Severity

__version__ = _version("monoquant")

__all__ = [
    "DEFAULT_INT4_SKIP",
    "AccuracyError",
    "AccuracyGate",
    "AccuracyWarning",
    "AccuracyWarningPass",
    "Action",
    "ActivationRange",
    "AllRule",
    "Ancestor",
    "AnyRule",
    "Awq",
    "Baseline",
    "BudgetPass",
    "CalibrationFacts",
    "CalibrationPass",
    "ClipSearch",
    "Codes",
    "Comparison",
    "ComparisonResult",
    "ConfigError",
    "Decision",
    "Energy",
    "Exporter",
    "FileError",
    "Finding",
    "Gate",
    "Gptq",
    "GroupCodes",
    "HalfCastPass",
    "HalfLinear",
    "HalfScheme",
    "InputError",
    "Int4Linear",
    "Int4PackPass",
    "Int8DynamicLinear",
    "Int8Linear",
    "Int8PackPass",
    "Int8StaticLinear",
    "Kernel",
    "Layer",
    "LayerReport",
    "MatrixForm",
    "ModuleAdapter",
    "MonoquantError",
    "NameRule",
    "Needs",
    "NotRule",
    "ObserverKind",
    "Obstacle",
    "Origin",
    "PackPass",
    "PackedModule",
    "ParameterAdapter",
    "Pass",
    "PassError",
    "PluginError",
    "PluginInfo",
    "PluginManager",
    "Product",
    "ProductKernel",
    "QuantContext",
    "QuantReport",
    "QuantResult",
    "QuantizationInfo",
    "Quantizer",
    "RangeObserver",
    "Registered",
    "Registry",
    "ReportDifference",
    "Reporter",
    "RoundToNearest",
    "RoundingKernel",
    "Scheme",
    "Severity",
    "SkipRule",
    "SkipSelectionPass",
    "Solution",
    "ThresholdRule",
    "Tradeoff",
    "TypeNameRule",
    "TypeRule",
    "ValidationError",
    "ValidationPass",
    "ValidationResult",
    "WarningCheck",
    "WeightAlgorithm",
    "WeightDifference",
    "WeightProblem",
    "check_accuracy_warnings",
    "choose_kernels",
    "compare_reports",
    "compare_weights",
    "dequantize",
    "dynamic_quantize",
    "get_layers_to_skip",
    "hookimpl",
    "list_plugins",
    "load",
    "load_report",
    "quantize",
    "quantize_file",
    "render_report",
    "save",
    "save_report",
    "static_quantize",
    "validate_quantization",
]
