"""A check that breaks its contract fails the suite, in the test of the clause it breaks, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest

import monoquant as mq
from monoquant.testing import WarningCheckConformance

pytestmark = pytest.mark.usefixtures("unshrunk")


def suite_of(given: Any, **attributes: Any) -> WarningCheckConformance:
    """The suite as an author would write it."""
    return type("TestMine", (WarningCheckConformance,), {"check": given, **attributes})()


def clauses_of(suite: Any) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


def finding(**fields: Any) -> mq.Finding:
    good = mq.Finding("too-much", mq.Severity.WARNING, "Warning: many layers were quantized.", remedy="Skip some.")
    return attrs.evolve(good, **fields)


@attrs.frozen
class TooMuch(mq.WarningCheck):
    """A good check, to be broken in one place each."""

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return [finding()] if info.selected_layers else []


def yielding(*findings: Any) -> mq.WarningCheck:
    """A check that answers the same of every run."""

    @attrs.frozen
    class Yields(mq.WarningCheck):
        def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
            return list(findings)

    return Yields()


class ReturnsNone(TooMuch):
    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Any:
        return finding() if info.selected_layers else None


class ComparesNone(TooMuch):
    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return [finding() for record in info.layers if record.sqnr_db < gate.sqnr_error_threshold]


class DividesByLayers(TooMuch):
    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return [finding()] if len(info.selected_layers) / len(info.layers) > 0.5 else []


class RoundsNan(TooMuch):
    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return [finding(message=f"{round(info.sqnr_db)} dB.") for _ in info.layers if info.sqnr_db is not None]


class TellsItself(TooMuch):
    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        info.warnings.append("many layers were quantized")
        return []


class BestFirst(TooMuch):
    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        return [finding(severity=mq.Severity.INFO), finding(severity=mq.Severity.CRITICAL)]


@attrs.frozen
class Counts(TooMuch):
    runs: list[int] = attrs.field(factory=list, eq=False, repr=False)

    def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
        self.runs.append(1)
        return [finding(message=f"Run {len(self.runs)}.")]


@attrs.define(eq=False)
class Exchangeable(TooMuch):
    most: int = 3

    __setattr__ = object.__setattr__


class Address(TooMuch):
    __repr__ = object.__repr__


ACTED = "test_findings_can_be_acted_on"
YIELDS = "test_it_yields_findings"
BROKEN: list[tuple[Callable[[], mq.WarningCheck], str, str]] = [
    (ReturnsNone, YIELDS, "answered .*list of Findings"),
    (lambda: yielding("text"), YIELDS, r"answered \['text'\].*list of Findings"),
    (ComparesNone, YIELDS, "raised TypeError.*may be None"),
    (DividesByLayers, YIELDS, "raised ZeroDivisionError.*do not divide by counts"),
    (RoundsNan, YIELDS, "raised (ValueError|OverflowError).*math.isnan"),
    (lambda: yielding(finding(code="")), ACTED, "code '' cannot be filtered for.*stable code"),
    (lambda: yielding(finding(code="Layer 3")), ACTED, "code 'Layer 3'.*without names"),
    (lambda: yielding(finding(severity=2)), ACTED, "its severity is 2.*Severity.CRITICAL"),
    (lambda: yielding(finding(message=" ")), ACTED, "its message is ' '.*with the figures"),
    (lambda: yielding(finding(remedy="skip some")), ACTED, "middle of a sentence.*full stop"),
    (lambda: yielding(finding(remedy="")), ACTED, "WARNING without a way out.*remedy"),
    (lambda: yielding(finding(layer="no.such")), ACTED, "no layer 'no.such'.*layer=record.layer"),
    (BestFirst, "test_the_worst_comes_first", r"\['INFO', 'CRITICAL'\].*worst findings first"),
    (Counts, "test_it_judges_the_same_again", "for an equal run.*alone"),
    (TellsItself, "test_it_changes_nothing", "changed the info.*leave info.warnings"),
    (Exchangeable, "test_it_is_a_frozen_value", "'most' be exchanged.*@attrs.frozen"),
    (Address, "test_it_prints_in_one_line", "an address differs.*__repr__"),
]


@pytest.mark.parametrize(("make", "clause", "message"), BROKEN, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_check_fails_in_its_clause(make: Callable[[], mq.WarningCheck], clause: str, message: str) -> None:
    """The message says what was seen and how to repair it."""
    with pytest.raises(AssertionError) as failure:
        getattr(suite_of(make()), clause)()
    assert re.search(message, str(failure.value), re.DOTALL), failure.value
    assert "To repair it: " in str(failure.value)


def test_a_check_that_judges_otherwise_in_the_pipeline_is_found() -> None:
    """What is reported of a real run is what the check says of its summary."""

    @attrs.frozen
    class Once(TooMuch):
        asked: list[int] = attrs.field(factory=list, eq=False, repr=False)

        def check(self, info: mq.QuantizationInfo, gate: mq.AccuracyGate) -> Iterable[mq.Finding]:
            self.asked.append(1)
            return [finding()] if len(self.asked) == 1 else []

    with pytest.raises(AssertionError, match=r"found \[\] on Linear, and the report has .*too-much"):
        suite_of(Once()).test_the_pipeline_asks_it()


def test_the_good_check_that_was_broken_is_good() -> None:
    """Each of the broken ones differs from this one in one place."""
    suite = suite_of(TooMuch(), max_examples=5)
    for name in clauses_of(suite):
        getattr(suite, name)()


def test_every_clause_is_broken_by_one_of_them() -> None:
    """A new test of the suite needs a check that fails it."""
    assert {clause for _, clause, _ in BROKEN} | {"test_the_pipeline_asks_it"} == set(
        clauses_of(WarningCheckConformance)
    )


@pytest.mark.parametrize("given", [None, TooMuch, "low-sqnr"])
def test_what_is_no_check_is_refused(given: Any) -> None:
    """Nothing, a class and a text are errors that say what to write."""
    with pytest.raises(mq.ConfigError, match="TestMine"):
        suite_of(given).test_it_is_a_frozen_value()
