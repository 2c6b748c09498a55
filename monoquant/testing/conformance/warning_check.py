"""The contract of warning checks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import attrs
from hypothesis.strategies import SearchStrategy

from monoquant.checks import AccuracyGate, WarningCheck
from monoquant.passes.accuracy_warning import AccuracyWarningPass
from monoquant.passes.int4_pack import Int4PackPass
from monoquant.passes.skip_selection import SkipSelectionPass
from monoquant.passes.validation import ValidationPass
from monoquant.quantizer import Quantizer
from monoquant.registry import Registered, Registry
from monoquant.report import QuantizationInfo
from monoquant.testing import zoo
from monoquant.testing.conformance.base import Conformance, check_is_frozen, check_repr, require
from monoquant.testing.conformance.findings import check_finding
from monoquant.testing.strategies.infos import gates, infos
from monoquant.testing.unchanged import untouched
from monoquant.values import Finding, Origin

_NO_FIGURES = (None, math.nan, math.inf, -math.inf)
_NONE_OR_NAN = (
    "figures may be None (not measured), NaN or infinite, and info.layers empty (an info built by hand): look at "
    "'value is not None', use math.isnan, and do not divide by counts"
)


class WarningCheckConformance(Conformance):
    """Tests every warning check must pass.

    Example::

        class TestRouterCheck(WarningCheckConformance):
            check = RouterCheck()

    Attributes:
        check: The check to test.
        infos: Strategy of the summaries that it judges; default: those of all kinds of runs, and built by hand.
    """

    check: WarningCheck
    infos: ClassVar[SearchStrategy[QuantizationInfo]] = infos()

    def test_it_is_a_frozen_value(self) -> None:
        """Its settings cannot be exchanged, and it can be hashed."""
        check_is_frozen(self._check, "the check")

    def test_it_prints_in_one_line(self) -> None:
        """Errors name the check that raised."""
        check_repr(self._check, "the check")

    def test_it_yields_findings(self) -> None:
        """Whatever was measured, it yields findings: none, some, but never None or a single one, and never raises."""

        @self.for_all(self.infos, gates())
        def judges(info: QuantizationInfo, gate: AccuracyGate) -> None:
            self._judged(info, gate)
            for figure in _NO_FIGURES:  # so many of a run's figures at once are rarely drawn
                layers = tuple(attrs.evolve(record, output_sqnr_db=figure) for record in info.layers)
                self._judged(attrs.evolve(info, sqnr_db=figure, layers=layers), gate)

    def test_findings_can_be_acted_on(self) -> None:
        """Each has a stable code, a severity, a message, what to do about it, and a layer that there is."""

        def check(info: QuantizationInfo, _gate: AccuracyGate, findings: list[Any]) -> None:
            for finding in findings:
                check_finding(finding, _layers(info), f"the check {self._check!r}")

        self._for_all_runs(check)

    def test_the_worst_comes_first(self) -> None:
        """CRITICAL before WARNING before INFO: people stop reading."""

        def check(_info: QuantizationInfo, _gate: AccuracyGate, findings: list[Finding]) -> None:
            severities = [finding.severity for finding in findings]
            broken = f"the check {self._check!r} yields severities in the order {[one.name for one in severities]}."
            require(severities == sorted(severities, reverse=True), broken, "yield the worst findings first")

        self._for_all_runs(check)

    def test_it_judges_the_same_again(self) -> None:
        """Equal runs have equal findings."""

        def check(info: QuantizationInfo, gate: AccuracyGate, findings: list[Finding]) -> None:
            again = self._judged(copy.deepcopy(info), gate)
            broken = f"the check {self._check!r} yields {findings!r}, then {again!r} for an equal run."
            require(repr(again) == repr(findings), broken, "judge by info, gate and the check's settings alone")

        self._for_all_runs(check)

    def test_it_changes_nothing(self) -> None:
        """The summary it judges is left alone, its lists as well: what people are told is the pass's to add."""

        @self.for_all(self.infos, gates())
        def judges(info: QuantizationInfo, gate: AccuracyGate) -> None:
            before = _text(info)
            self._judged(info, gate)
            remedy = "yield findings, and leave info.warnings and the other lists alone"
            require(_text(info) == before, f"the check {self._check!r} changed the info that it judged.", remedy)

    def test_the_pipeline_asks_it(self) -> None:
        """On real runs its findings are in the report, with their origin, and the model is left alone."""
        origin = Origin("conformance", "1")
        mine: list[Any] = [Registered(self._check, origin)]
        registry = Registry(warning_checks=mine)
        passes = [SkipSelectionPass(), Int4PackPass(group_size=32), ValidationPass(), AccuracyWarningPass("ignore")]
        for name in ("Linear", "TransformerEncoderLayer", "Embedding"):
            model = zoo.specimen(name).build()
            with untouched(model):
                result = Quantizer(passes, registry).run(model)
            told = [finding for finding in result.report.findings if finding.origin == origin]
            for finding in told:
                check_finding(finding, [record.layer for record in result.report.layers], f"the check {self._check!r}")
            expected = {finding.code for finding in self._judged(result.info, AccuracyGate())}
            broken = f"the check {self._check!r} found {sorted(expected)} on {name}, and the report has {told!r}."
            require({finding.code for finding in told} == expected, broken, "judge by info and gate alone")

    @property
    def _check(self) -> WarningCheck:
        check: WarningCheck = self.subject("check", WarningCheck)
        return check

    def _for_all_runs(self, holds: Any) -> None:
        @self.for_all(self.infos, gates())
        def judges(info: QuantizationInfo, gate: AccuracyGate) -> None:
            holds(info, gate, self._judged(info, gate))

    def _judged(self, info: QuantizationInfo, gate: AccuracyGate) -> list[Any]:
        try:
            answer: Any = self._check.check(info, gate)
            found = list(answer) if isinstance(answer, Iterable) else None
        except Exception as error:
            raise AssertionError(
                f"the check {self._check!r} raised {error!r}: it judges every run.\nTo repair it: {_NONE_OR_NAN}"
            ) from error
        if found is None or not all(isinstance(finding, Finding) for finding in found):
            given = answer if found is None else found
            raise AssertionError(
                f"the check {self._check!r} answered {given!r}.\nTo repair it: return a list of Findings, [] for none"
            )
        return found


def _layers(info: QuantizationInfo) -> list[str]:
    by_hand = [*info.selected_layers, *info.skipped_layers, *info.unsupported_layers]
    return [*by_hand, *(record.layer for record in info.layers)]


def _text(info: QuantizationInfo) -> str:
    return repr((info, info.layers))
