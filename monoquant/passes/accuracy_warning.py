"""Turn measurements into findings, and fail the run when the damage is too big."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import attrs

from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.context import QuantContext
from monoquant.errors import ConfigError
from monoquant.passes.base import Pass
from monoquant.passes.pack import PackPass
from monoquant.passes.validation import ValidationPass
from monoquant.registry import Registered
from monoquant.report import QuantizationInfo
from monoquant.summary import build_report
from monoquant.values import BUILT_IN
from monoquant.verdict import deliver, fail_on_validator, policy_validator, run_checks


def _codes(given: Any) -> frozenset[str]:
    if isinstance(given, str) or not all(isinstance(code, str) for code in given):
        raise ConfigError(f"disabled={given!r}: give a list of finding codes, such as ['all-layers-quantized']")
    return frozenset(given)


def _checks(given: Any) -> tuple[WarningCheck, ...]:
    checks = tuple(given) if isinstance(given, Iterable) else (given,)
    wrong = [check for check in checks if not isinstance(check, WarningCheck)]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is no WarningCheck: give checks=Gate(...).checks, or instances of your own")
    return checks


@attrs.frozen
class AccuracyWarningPass(Pass):
    """Run every warning check, built-in and from plugins, and react once.

    Args:
        on_failure: ``"warn"`` (default) emits one AccuracyWarning, ``"error"`` raises AccuracyError if a finding is
            as bad as ``fail_on``, ``"ignore"`` only fills the lists.
        sqnr_warning_threshold: Layers whose output is below this many dB are worth a warning; default 20.
        sqnr_error_threshold: Layers below this many dB are CRITICAL; default 10.
        disabled: Codes of findings to leave out, such as ``"all-layers-quantized"``; default none.
        fail_on: ``"critical"`` (default) or ``"warning"``: the least severity that fails.
        checks: Further checks, such as ``Gate(min_layer_sqnr_db=12).checks``; default none.
    """

    follows: ClassVar[tuple[type[Pass], ...]] = (PackPass,)
    after: ClassVar[tuple[type[Pass], ...]] = (ValidationPass,)
    single: ClassVar[bool] = True

    on_failure: Literal["error", "warn", "ignore"] = attrs.field(default="warn", validator=policy_validator)
    sqnr_warning_threshold: float = 20.0
    sqnr_error_threshold: float = 10.0
    disabled: frozenset[str] = attrs.field(default=frozenset(), converter=_codes)
    fail_on: Literal["critical", "warning"] = attrs.field(default="critical", validator=fail_on_validator)
    checks: tuple[WarningCheck, ...] = attrs.field(default=(), converter=_checks)

    def __attrs_post_init__(self) -> None:
        _ = self.gate  # refuses bad settings now rather than in the run

    @property
    def gate(self) -> AccuracyGate:
        """The thresholds as the checks see them."""
        return AccuracyGate(self.sqnr_warning_threshold, self.sqnr_error_threshold)

    def requires(self, context: QuantContext) -> None:
        if self.on_failure == "error" and context.validation is None:
            raise ConfigError("on_failure='error' has nothing to judge: put ValidationPass before AccuracyWarningPass")

    def run(self, context: QuantContext) -> None:
        info = QuantizationInfo.from_report(build_report(context))
        checks = [*context.registry.warning_checks, *(Registered(check, BUILT_IN) for check in self.checks)]
        context.report(run_checks(checks, info, self.gate, self.disabled))
        report = build_report(context)
        try:
            deliver(info, report.findings, self.on_failure, report, self.fail_on)
        finally:
            if context.validation is not None:
                context.validation.warnings.extend(info.warnings)
