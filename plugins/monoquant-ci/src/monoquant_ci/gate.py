"""The gate of a release as a plugin: what the environment says is held against by monoquant's own Gate."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import attrs
import monoquant
from monoquant import (
    AccuracyGate,
    Baseline,
    ConfigError,
    FileError,
    Finding,
    QuantizationInfo,
    Severity,
    WarningCheck,
    hookimpl,
)

from monoquant_ci.version import VERSION

BASELINE: Final = "MONOQUANT_CI_BASELINE"
TOLERANCE_DB: Final = "MONOQUANT_CI_TOLERANCE_DB"
SIZE_TOLERANCE: Final = "MONOQUANT_CI_SIZE_TOLERANCE_PERCENT"

DEFAULT_TOLERANCE_DB: Final = 0.5
DEFAULT_SIZE_TOLERANCE: Final = 1.0


def _required(given: Any) -> Baseline:
    baseline = monoquant.Gate(baseline=given).baseline
    if baseline is None:
        raise ConfigError("baseline=None: give a QuantReport, or the path of a report or of a saved model")
    return baseline


@attrs.frozen
class Gate(WarningCheck):
    """A warning check, and the plugin that registers it: ``quantize(model, plugins=[Gate("baseline.json")])``.

    The comparison is that of ``monoquant.Gate``, which needs no plugin; this one can be set by the environment, and its
    findings are told as the plugin's.

    Args:
        baseline: The report of the last release, or the path of one: what ``save_report`` wrote to a ``.json`` file, or
            ``save`` to a ``.safetensors`` file.
        tolerance_db: A layer whose SQNR fell by more than this is CRITICAL; dB, default 0.5.
        size_tolerance_percent: A model that grew by more than this is CRITICAL; default 1.

    Raises:
        FileError: When the baseline cannot be read.
        ConfigError: For a baseline of another kind, or a tolerance that is no finite number >= 0.
    """

    __version__: ClassVar[str] = VERSION  # for reports: an object that is passed as a plugin has no distribution

    baseline: Baseline = attrs.field(converter=_required)
    tolerance_db: float = DEFAULT_TOLERANCE_DB
    size_tolerance_percent: float = DEFAULT_SIZE_TOLERANCE
    _gate: monoquant.Gate = attrs.field(init=False, eq=False, repr=False)

    @_gate.default
    def _of_settings(self) -> monoquant.Gate:
        return monoquant.Gate(
            baseline=self.baseline,
            tolerance_db=self.tolerance_db,
            size_tolerance_percent=self.size_tolerance_percent,
        )

    @hookimpl
    def monoquant_register_warning_checks(self) -> Iterable[WarningCheck]:
        """Register itself."""
        return [self]

    def check(self, info: QuantizationInfo, gate: AccuracyGate) -> Iterable[Finding]:
        return self._gate.judge(info)


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
    if not path:
        return NoBaselineCheck()
    try:
        return Gate(path, *tolerances)
    except FileError as error:
        raise FileError(str(error).replace("baseline=", f"{BASELINE}=", 1)) from error


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
