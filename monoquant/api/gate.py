"""The quality gate as one value: limits, a baseline, and how bad a finding must be to fail the build."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, Literal

import attrs

from monoquant.api.files import load_report
from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.errors import ConfigError, FileError, InputError
from monoquant.gates.baseline import Baseline, BaselineCheck
from monoquant.gates.limits import BitsPerWeightCheck, CompressionCheck, LayerSqnrCheck, ModelSqnrCheck
from monoquant.report import QuantizationInfo, QuantReport
from monoquant.values import Finding
from monoquant.verdict import fail_on_validator, failing

_HOW_TO_WRITE_ONE = "write one with monoquant.save_report(result.report, 'baseline.json')"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_limit(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not _number(value):
        raise ConfigError(f"{attribute.name}={value!r}: give a finite number, or None for no limit")


def _check_positive(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not (_number(value) and value > 0):
        raise ConfigError(f"{attribute.name}={value!r}: give a finite number > 0, or None for no limit")


def _check_tolerance(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not _number(value) or value < 0:
        raise ConfigError(f"{attribute.name}={value!r}: give a finite number >= 0, such as 0.5")


def _baseline(given: Any) -> Baseline | None:
    if given is None or isinstance(given, Baseline):
        return given
    if isinstance(given, QuantReport):
        return Baseline(given)
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"baseline={given!r}: give a QuantReport, or the path of a report or of a saved model")
    source = os.fsdecode(given)
    try:
        return Baseline(load_report(source), source)
    except FileError as error:
        raise FileError(f"baseline={source!r} is no baseline: {error}; {_HOW_TO_WRITE_ONE}") from error


@attrs.frozen(kw_only=True)
class Gate:
    """What fails a build, beside the built-in checks; ``quantize(model, gate=Gate(min_layer_sqnr_db=12))``.

    Every limit that is not kept is a CRITICAL finding with a code of its own: ``gate-layer-sqnr``, ``gate-model-sqnr``,
    ``gate-bits-per-weight``, ``gate-compression``, ``baseline-regression``, ``baseline-size``; and
    ``gate-not-measured`` where there is nothing to judge. Layers that cannot be compared with the baseline are
    warnings.

    Args:
        fail_on: The least severity that fails: ``"critical"`` (default) or ``"warning"``, which counts every warning,
            also those of the built-in checks and of plugins.
        min_layer_sqnr_db: What every quantized layer must reach, in dB; None (default) for no limit. Judged is the
            output where it was measured, else the weight; the finding says which.
        min_model_sqnr_db: What the model must reach, in dB: the median of the layers' outputs where they were measured,
            else all weights together; default None.
        max_bits_per_weight: Bits that packed weights may take, scales included; > 0, default None.
        min_compression: How many times smaller the model, all parameters and buffers, must become; > 0, default None.
        baseline: The report of an earlier release, or the path of one: what ``save_report`` wrote to a ``.json`` file,
            or ``save`` to a ``.safetensors`` file; default None.
        tolerance_db: What a layer may lose against the baseline; dB, default 0.5. Figures are compared as they are
            written in decimals, so that a fall by exactly the tolerance passes.
        size_tolerance_percent: What the model may grow against the baseline; default 1.

    Raises:
        FileError: When the baseline cannot be read.
        ConfigError: For values of another kind.
    """

    fail_on: Literal["critical", "warning"] = attrs.field(default="critical", validator=fail_on_validator)
    min_layer_sqnr_db: float | None = attrs.field(default=None, validator=_check_limit)
    min_model_sqnr_db: float | None = attrs.field(default=None, validator=_check_limit)
    max_bits_per_weight: float | None = attrs.field(default=None, validator=_check_positive)
    min_compression: float | None = attrs.field(default=None, validator=_check_positive)
    baseline: Baseline | None = attrs.field(default=None, converter=_baseline)
    tolerance_db: float = attrs.field(default=0.5, validator=_check_tolerance)
    size_tolerance_percent: float = attrs.field(default=1.0, validator=_check_tolerance)

    @property
    def checks(self) -> tuple[WarningCheck, ...]:
        """The limits that are set, each as a warning check."""
        limits: list[tuple[type[Any], float | None]] = [
            (LayerSqnrCheck, self.min_layer_sqnr_db),
            (ModelSqnrCheck, self.min_model_sqnr_db),
            (BitsPerWeightCheck, self.max_bits_per_weight),
            (CompressionCheck, self.min_compression),
        ]
        found: list[WarningCheck] = [kind(limit) for kind, limit in limits if limit is not None]
        if self.baseline is not None:
            found.append(BaselineCheck(self.baseline, self.tolerance_db, self.size_tolerance_percent))
        return tuple(found)

    def judge(self, report: QuantReport | QuantizationInfo) -> list[Finding]:
        """Hold a stored report, or a summary, against the limits.

        Args:
            report: Such as :func:`load_report` returns.

        Returns:
            What the limits say, the worst first; findings that the report itself has are not among them.
        """
        if not isinstance(report, (QuantReport, QuantizationInfo)):
            raise InputError(
                f"report is a {type(report).__name__}: give a QuantReport, such as load_report(path) returns"
            )
        info = report if isinstance(report, QuantizationInfo) else QuantizationInfo.from_report(report)
        found = [finding for check in self.checks for finding in check.check(info, AccuracyGate())]
        return sorted(found, key=lambda finding: -finding.severity)

    def failures(self, findings: Iterable[Finding]) -> list[Finding]:
        """Those of some findings that fail the build.

        Args:
            findings: Of a report, of :meth:`judge`, or of both.
        """
        return failing(findings, self.fail_on)
