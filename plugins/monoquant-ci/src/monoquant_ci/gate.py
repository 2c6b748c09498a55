"""The gate: no layer worse than in the last release, and the model no larger."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import attrs
from monoquant import (
    AccuracyGate,
    ConfigError,
    FileError,
    Finding,
    QuantizationInfo,
    QuantReport,
    Severity,
    WarningCheck,
    hookimpl,
    load_report,
)

from monoquant_ci.layers import judge_layers
from monoquant_ci.sizes import judge_size
from monoquant_ci.version import VERSION

BASELINE: Final = "MONOQUANT_CI_BASELINE"
TOLERANCE_DB: Final = "MONOQUANT_CI_TOLERANCE_DB"
SIZE_TOLERANCE: Final = "MONOQUANT_CI_SIZE_TOLERANCE_PERCENT"

DEFAULT_TOLERANCE_DB: Final = 0.5
DEFAULT_SIZE_TOLERANCE: Final = 1.0

HOW_TO_WRITE_ONE: Final = "write one with monoquant.save_report(result.report, 'baseline.json')"


@attrs.frozen
class Baseline:
    """The report of an earlier release, and where it came from.

    Args:
        report: The report.
        source: Its path, for messages.
    """

    report: QuantReport = attrs.field(repr=False)
    source: str


def _baseline(given: Any, setting: str = "baseline") -> Baseline:
    if isinstance(given, Baseline):
        return given
    if isinstance(given, QuantReport):
        return Baseline(given, "the baseline")
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"{setting}={given!r}: give a QuantReport, or the path of a report or of a saved model")
    source = os.fsdecode(given)
    try:
        return Baseline(load_report(source), source)
    except FileError as error:
        raise FileError(f"{setting}={source!r} is no baseline: {error}; {HOW_TO_WRITE_ONE}") from error


def _require_tolerance(setting: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0:
        raise ConfigError(f"{setting}={value!r}: give a finite number >= 0, such as 0.5")


def _check_tolerance(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    _require_tolerance(attribute.name, value)


@attrs.frozen
class Gate(WarningCheck):
    """A warning check, and the plugin that registers it: ``quantize(model, plugins=[Gate("baseline.json")])``.

    Like is compared with like only. Layers that are new, gone, of another shape or scheme, or that were measured on
    outputs in one run and on weights in the other, are findings of their own.

    Args:
        baseline: The report of the last release, or the path of one: what ``save_report`` wrote to a ``.json`` file, or
            ``save`` to a ``.safetensors`` file.
        tolerance_db: A layer whose SQNR fell by more than this is CRITICAL; dB, default 0.5. Figures are compared as
            they are written in decimals, so that a fall by exactly the tolerance passes.
        size_tolerance_percent: A model that grew by more than this is CRITICAL; default 1.

    Raises:
        FileError: When the baseline cannot be read.
        ConfigError: For a baseline of another kind, or a tolerance that is no finite number >= 0.
    """

    __version__: ClassVar[str] = VERSION  # for reports: an object that is passed as a plugin has no distribution

    baseline: Baseline = attrs.field(converter=_baseline)
    tolerance_db: float = attrs.field(default=DEFAULT_TOLERANCE_DB, validator=_check_tolerance)
    size_tolerance_percent: float = attrs.field(default=DEFAULT_SIZE_TOLERANCE, validator=_check_tolerance)

    @hookimpl
    def monoquant_register_warning_checks(self) -> Iterable[WarningCheck]:
        """Register itself."""
        return [self]

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        report, source = self.baseline.report, self.baseline.source
        found = [
            *judge_layers(report.layers, info.layers, self.tolerance_db, source),
            *judge_size(report, info, self.size_tolerance_percent, source),
        ]
        return sorted(found, key=lambda finding: -finding.severity)


@attrs.frozen
class NoBaselineCheck(WarningCheck):
    """Says that there is nothing to compare with: a gate that is not there should not look like one that is open."""

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        message = f"No layer was compared with an earlier release: {BASELINE} is not set."
        remedy = (
            "Set it to the report of the last release, as save_report(result.report, 'baseline.json') writes it. Where "
            "a Gate in plugins=[...] has the baseline, leave the installed plugin out with 'no:monoquant-ci'."
        )
        return [Finding("baseline-not-set", Severity.INFO, message, remedy=remedy)]


def check_of_environment() -> WarningCheck:
    """The gate that ``MONOQUANT_CI_BASELINE`` and the two tolerances describe.

    Returns:
        A Gate; where no baseline is set, a check that says so.

    Raises:
        FileError: When the baseline cannot be read.
        ConfigError: For a tolerance that is no finite number >= 0.
    """
    tolerances = _number(TOLERANCE_DB, DEFAULT_TOLERANCE_DB), _number(SIZE_TOLERANCE, DEFAULT_SIZE_TOLERANCE)
    path = os.environ.get(BASELINE, "").strip()
    return Gate(_baseline(path, BASELINE), *tolerances) if path else NoBaselineCheck()


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{variable}={text!r}: give a finite number >= 0, such as {default}")
    return value
