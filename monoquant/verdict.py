"""From findings to a verdict: texts for people, one warning or one error for the build."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.errors import AccuracyError, AccuracyWarning, ConfigError, PluginError
from monoquant.registry import Registered
from monoquant.report import QuantizationInfo, QuantReport
from monoquant.report.wording import texts
from monoquant.values import Finding, Severity

POLICIES = ("error", "warn", "ignore")


def require_policy(name: str, value: Any) -> None:
    """Refuse anything but the three ways to react.

    Args:
        name: The option's name, for the error.
        value: What was given.

    Raises:
        ConfigError: Unless it is ``"error"``, ``"warn"`` or ``"ignore"``.
    """
    if value not in POLICIES:
        raise ConfigError(f"{name}={value!r}: give one of {', '.join(map(repr, POLICIES))}")


def policy_validator(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """:func:`require_policy` as a validator of an attrs field."""
    require_policy(attribute.name, value)


SEVERITIES = {"critical": Severity.CRITICAL, "warning": Severity.WARNING}


def fail_on_validator(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Refuse anything but the two severities that may fail a build; a validator of an attrs field.

    Raises:
        ConfigError: Unless it is ``"critical"`` or ``"warning"``.
    """
    if value not in SEVERITIES:
        raise ConfigError(f"{attribute.name}={value!r}: give one of {', '.join(map(repr, SEVERITIES))}")


def failing(findings: Iterable[Finding], fail_on: str) -> list[Finding]:
    """Findings that fail a build.

    Args:
        findings: Any.
        fail_on: The least severity that does: ``"critical"`` or ``"warning"``.
    """
    return [finding for finding in findings if finding.severity >= SEVERITIES[fail_on]]


def run_checks(
    checks: Iterable[Registered[WarningCheck]],
    info: QuantizationInfo,
    gate: AccuracyGate,
    disabled: Iterable[str] = (),
) -> list[Finding]:
    """Let every check judge a run.

    Args:
        checks: Checks with their origins.
        info: The run's summary.
        gate: Thresholds.
        disabled: Codes of findings to leave out.

    Returns:
        Findings, each stamped with its check's origin, worst severity first.

    Raises:
        PluginError: When a check yields something that is not a Finding.
        Exception: What a check raises, with a note that names it.
    """
    off = frozenset(disabled)
    found = [finding for check in checks for finding in _findings_of(check, info, gate) if finding.code not in off]
    return sorted(found, key=lambda finding: -finding.severity)


def _findings_of(check: Registered[WarningCheck], info: QuantizationInfo, gate: AccuracyGate) -> list[Finding]:
    try:
        answer: Any = check.value.check(info, gate)
        found = list(answer) if isinstance(answer, Iterable) else None
    except Exception as error:
        error.add_note(f"raised by the warning check {check.value!r} of {check.origin}")
        raise
    if found is None or not all(isinstance(item, Finding) for item in found):
        given = answer if found is None else found
        raise PluginError(
            f"the warning check {check.value!r} of {check.origin} answered {given!r}: return a list of Findings"
        )
    return [_stamped(finding, check) for finding in found]


def _stamped(finding: Finding, check: Registered[WarningCheck]) -> Finding:
    return Finding(finding.code, finding.severity, finding.message, finding.layer, finding.remedy, check.origin)


def deliver(
    info: QuantizationInfo,
    findings: Sequence[Finding],
    on_failure: str,
    report: QuantReport | None = None,
    fail_on: str = "critical",
) -> None:
    """Fill ``info.warnings`` and react once.

    Args:
        info: The summary; texts it lacks are added to its ``warnings``.
        findings: All findings, the worst first.
        on_failure: ``"error"``: raise if one fails, else only fill the list. ``"warn"``: emit one AccuracyWarning
            if there is any warning. ``"ignore"``: only fill the list.
        report: What an AccuracyError carries; default none.
        fail_on: The least severity that fails; default ``"critical"``.

    Raises:
        AccuracyError: See ``on_failure``; names every failing layer, worst first.
    """
    told = texts(findings)
    info.warnings.extend(text for text in told if text not in info.warnings)
    failed = failing(findings, fail_on)
    if failed and on_failure == "error":
        layers = dict.fromkeys(finding.layer for finding in failed if finding.layer is not None)
        message = "\n".join(f"- {text}" for text in texts(failed))
        strict = "" if fail_on == "critical" else f", where a {fail_on} is enough"
        raise AccuracyError(
            f"CRITICAL: the quality gate failed{strict}\n{message}", layers=layers, info=info, report=report
        )
    if told and on_failure == "warn":
        warnings.warn("\n".join(told), AccuracyWarning, stacklevel=_frames_to_caller())


def _frames_to_caller() -> int:
    """Stack level, seen from the calling function, of the first frame outside monoquant."""
    package = f"{Path(__file__).parent}{os.sep}"
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return max(level - 1, 1)
