"""The baseline on records: what is a regression, and what cannot be compared."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monoquant as mq

INT4, INT8 = mq.Scheme(), mq.Scheme(8, None, True)
MEBIBYTE = 1 << 20
SILENT = {"baseline-compared", "baseline-size-compared"}

LAYER = mq.LayerReport(
    layer="a",
    kind="Linear",
    shape=(64, 64),
    parameters=4096,
    action=mq.Action.QUANTIZE,
    reason="Linear weight to int4",
    bytes_before=16384,
    bytes_after=2432,
    scheme=INT4,
    weights=("weight",),
    weight_sqnr_db=20.0,
)
KEPT = attrs.evolve(LAYER, action=mq.Action.SKIP, scheme=None, weights=(), weight_sqnr_db=None, bytes_after=16384)


def report_of(*layers: mq.LayerReport, bytes_after: int = 4000) -> mq.QuantReport:
    validation = mq.ValidationResult(original_size_mb=20000 / MEBIBYTE, quantized_size_mb=bytes_after / MEBIBYTE)
    return mq.QuantReport(INT4, layers, (), 20000, bytes_after, validation=validation)


def judged(past: mq.QuantReport, present: mq.QuantReport, **settings: Any) -> list[mq.Finding]:
    return mq.Gate(baseline=past, **settings).judge(present)


def found(past: mq.LayerReport, present: mq.LayerReport, **settings: Any) -> tuple[str, mq.Severity]:
    """Code and severity of the one finding on two records of a layer, besides those that say what was compared."""
    findings = judged(report_of(past), report_of(present), **settings)
    codes = {finding.code: finding.severity for finding in findings}
    told = {code: severity for code, severity in codes.items() if code not in (*SILENT, "baseline-compared-nothing")}
    ((code, severity),) = told.items() or {"nothing": mq.Severity.INFO}.items()
    return code, severity


REGRESSION = ("baseline-regression", mq.Severity.CRITICAL)
FINE = ("nothing", mq.Severity.INFO)


@pytest.mark.parametrize(
    ("then", "now", "tolerance", "expected"),
    [
        (20.0, 19.5, 0.5, FINE),
        (20.0, 19.499999999999996, 0.5, REGRESSION),
        (20.3, 20.0, 0.3, FINE),  # 20.3 - 20.0 > 0.3 in floats
        (20.3, 20.2, 0.1, FINE),
        (20.3, 20.1999, 0.1, REGRESSION),
        (20.0, 20.0, 0.0, FINE),
        (20.0, 19.999999999999996, 0, REGRESSION),
        (20.0, 25.0, 0.0, FINE),
        (-3.0, -3.5, 0.5, FINE),
        (-3.0, -3.6, 0.5, REGRESSION),
        (20.0, math.nan, 0.5, REGRESSION),
        (20.0, -math.inf, 0.5, REGRESSION),
        (20.0, math.inf, 0.5, FINE),
        (math.inf, math.inf, 0.5, FINE),
        (math.inf, 80.0, 0.5, REGRESSION),
        (math.inf, math.nan, 0.5, REGRESSION),
        (-math.inf, -math.inf, 0.0, FINE),
        (-math.inf, 3.0, 0.0, FINE),
        (math.nan, 20.0, 0.5, ("baseline-not-measured", mq.Severity.WARNING)),
        (math.nan, math.nan, 0.5, ("baseline-not-measured", mq.Severity.WARNING)),
    ],
)
@pytest.mark.parametrize("measured", ["weight_sqnr_db", "output_sqnr_db"])
def test_a_fall_by_the_tolerance_passes_and_by_any_more_fails(
    measured: str, then: float, now: float, tolerance: float, expected: tuple[str, mq.Severity]
) -> None:
    """Decimals count as they are written, and figures that are not finite are no way around the gate."""
    past, present = (attrs.evolve(LAYER, **{measured: value}) for value in (then, now))
    assert found(past, present, tolerance_db=tolerance) == expected


@given(
    then=st.integers(-10_000, 10_000),
    fall=st.integers(-500, 500),
    tolerance=st.integers(0, 500),
    places=st.integers(0, 6),
)
def test_the_gate_agrees_with_whole_numbers(then: int, fall: int, tolerance: int, places: int) -> None:
    """Scaled to decimals, the answer is that of integer arithmetic, at the boundary as well."""
    unit = 10**places
    past, present = (attrs.evolve(LAYER, weight_sqnr_db=value / unit) for value in (then, then - fall))
    expected = REGRESSION if fall > tolerance else FINE
    assert found(past, present, tolerance_db=tolerance / unit) == expected


@pytest.mark.parametrize(
    ("past", "present", "code", "severity"),
    [
        ({}, {"shape": (64, 32)}, "layer-changed", mq.Severity.WARNING),
        ({}, {"weights": ("weight", "other")}, "layer-changed", mq.Severity.WARNING),
        ({}, {"output_sqnr_db": 3.0}, "measured-otherwise", mq.Severity.WARNING),
        ({"output_sqnr_db": 30.0}, {}, "measured-otherwise", mq.Severity.WARNING),
        ({}, {"weight_sqnr_db": None}, "not-measured", mq.Severity.WARNING),
        ({"weight_sqnr_db": None}, {}, "not-measured", mq.Severity.WARNING),
        ({"weight_sqnr_db": None}, {"weight_sqnr_db": None}, "not-measured", mq.Severity.WARNING),
    ],
)
def test_unlike_things_are_not_compared(
    past: dict[str, Any], present: dict[str, Any], code: str, severity: mq.Severity
) -> None:
    """However far SQNR fell, the finding says why there is no comparison, and the summary counts none."""
    then, now = attrs.evolve(LAYER, **{"weight_sqnr_db": 90.0} | past), attrs.evolve(LAYER, **present)
    assert found(then, now) == (f"baseline-{code}", severity)
    (summary,) = [item for item in judged(report_of(then), report_of(now)) if item.code == "baseline-compared-nothing"]
    assert summary.severity is mq.Severity.CRITICAL


@pytest.mark.parametrize("scheme", [INT8, mq.Scheme(group_size=64)])
@pytest.mark.parametrize(("now", "is_worse"), [(19.0, True), (19.6, False), (30.0, False)])
def test_another_scheme_is_told_and_held_against_the_tolerance(scheme: mq.Scheme, now: float, is_worse: bool) -> None:
    """Fewer bits are a loss as any other, or a build would pass that went from INT8 to INT4."""
    findings = judged(report_of(LAYER), report_of(attrs.evolve(LAYER, scheme=scheme, weight_sqnr_db=now)))
    codes = {finding.code: finding.severity for finding in findings}
    assert codes["baseline-scheme-changed"] is mq.Severity.WARNING
    assert (codes.get("baseline-regression") is mq.Severity.CRITICAL) is is_worse
    assert "baseline-compared" in codes
    (told,) = [finding.message for finding in findings if finding.code == "baseline-scheme-changed"]
    assert "not compared" not in told


def test_a_layer_that_is_float_now_cannot_be_worse() -> None:
    """Quantized then and float now is told; float then and quantized now is a warning, with the figure."""
    assert found(LAYER, KEPT) == ("baseline-scheme-changed", mq.Severity.INFO)
    assert found(KEPT, LAYER) == ("baseline-scheme-changed", mq.Severity.WARNING)
    assert found(KEPT, KEPT) == FINE
    (changed,) = [one for one in judged(report_of(KEPT), report_of(LAYER)) if one.code == "baseline-scheme-changed"]
    assert "float then, int4 g128 asymmetric float16 (weight 20.00 dB) now" in changed.message


def named(name: str, **changes: Any) -> mq.LayerReport:
    return attrs.evolve(LAYER, layer=name, **changes)


def by_code(findings: list[mq.Finding]) -> dict[str, list[str | None]]:
    codes: dict[str, list[str | None]] = {}
    for finding in findings:
        codes.setdefault(finding.code.removeprefix("baseline-"), []).append(finding.layer)
    return codes


def test_new_and_lost_layers_are_told_and_float_ones_are_not() -> None:
    """Only layers that were or are quantized have anything to compare."""
    past = report_of(named("a"), named("old"), attrs.evolve(KEPT, layer="old-norm"))
    present = report_of(named("a"), named("new", shape=(8, 8)), attrs.evolve(KEPT, layer="new-norm"))
    findings = judged(past, present)
    expected = {"layer-gone": [None], "layer-new": ["new"], "compared": [None], "size-compared": [None]}
    assert by_code(findings) == expected
    assert [finding.severity for finding in findings] == sorted((item.severity for item in findings), reverse=True)
    assert "Perhaps" not in "".join(map(str, findings))
    assert "Layer 'old' of the baseline is gone" in "".join(map(str, findings))


@pytest.mark.parametrize(
    ("past", "present", "guesses"),
    [
        (["q"], ["query"], ["query"]),
        (["q", "k"], ["query", "key"], []),
        (["0.q", "1.q"], ["model.0.q", "model.1.q"], ["model.0.q", "model.1.q"]),
        (["module.0", "module.1"], ["0", "1"], ["0", "1"]),
        (["q", "k"], ["query"], []),
        (["0.q"], ["a.0.q", "b.0.q"], []),
    ],
)
def test_renamed_layers_are_guessed_and_never_compared(past: list[str], present: list[str], guesses: list[str]) -> None:
    """The guess is told where one new layer of the same kind and shape stands out."""
    findings = judged(report_of(*map(named, past)), report_of(*(named(name, weight_sqnr_db=1.0) for name in present)))
    codes = by_code(findings)
    assert codes["layer-gone"] == [None] * len(past)
    assert all(f"Layer {name!r} of the baseline is gone" in "".join(map(str, findings)) for name in past)
    assert codes["layer-new"] == present
    assert "regression" not in codes
    told = [finding.message.partition("Perhaps it is called ")[2] for finding in findings]
    assert [text.split("'")[1] for text in told if text] == guesses


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ([named("a", aliases=("b",))], [named("b", weight_sqnr_db=1.0)]),
        ([named("a")], [named("b", aliases=("a",), weight_sqnr_db=1.0)]),
        ([named("a"), named("b")], [named("a", aliases=("b",), weight_sqnr_db=1.0)]),
    ],
)
def test_a_module_under_another_of_its_names_is_the_same(
    past: list[mq.LayerReport], present: list[mq.LayerReport]
) -> None:
    """Tied modules are listed under one of their names, and it need not be the same one; none is new or gone."""
    codes = by_code(judged(report_of(*past), report_of(*present)))
    assert codes.keys() == {"regression", "compared", "size-compared"}
    assert len(codes["regression"]) == len(past)


def test_regressions_come_worst_first_with_what_else_changed() -> None:
    """The message has both figures, the loss, the tolerance, and the circumstances."""
    past = report_of(*(named(name, output_sqnr_db=30.0, algorithm="gptq", sample_rows=512) for name in "abc"))
    values = {"a": 29.0, "b": 20.0, "c": math.nan}
    present = report_of(*(named(name, output_sqnr_db=value, sample_rows=64) for name, value in values.items()))
    findings = judged(past, present, tolerance_db=0.5)
    assert by_code(findings)["regression"] == ["c", "b", "a"]
    assert findings[1].message == (
        "CRITICAL: SQNR of the output of layer 'b' is 20.00 dB, 10.000 dB less than 30.00 dB in the baseline "
        "(gptq then, no algorithm now; 512 rows then, 64 now); 0.5 dB are tolerated."
    )
    assert "is nan dB, and was 30.00 dB in the baseline" in findings[0].message
    summary = next(finding for finding in findings if finding.code == "baseline-compared")
    assert summary.message == (
        "Layers compared with the baseline: 3, of which 3 lost more than 0.5 dB; the largest loss is inf dB, in 'c'."
    )


def test_the_summary_tells_the_largest_loss() -> None:
    """A gate that is open says how close it was."""
    past, present = report_of(named("a"), named("b")), report_of(named("a", weight_sqnr_db=19.75), named("b"))
    assert judged(past, present)[0].message == (
        "Layers compared with the baseline: 2, of which 0 lost more than 0.5 dB; the largest loss is 0.250 dB, in 'a'."
    )
    assert judged(past, past)[0].message.endswith("none lost anything.")


@pytest.mark.parametrize(
    ("bytes_after", "tolerance", "code"),
    [
        (4000, 0, "size-compared"),
        (3000, 0, "size-compared"),
        (4001, 0, "size"),
        (4040, 1, "size-compared"),
        (4041, 1, "size"),
        (4012, 0.3, "size-compared"),
        (4013, 0.3, "size"),
    ],
)
def test_growth_by_the_tolerance_passes_and_by_any_more_fails(bytes_after: int, tolerance: float, code: str) -> None:
    """Sizes are compared in bytes."""
    present = report_of(LAYER, bytes_after=bytes_after)
    findings = judged(report_of(LAYER), present, size_tolerance_percent=tolerance)
    severities = {finding.code: finding.severity for finding in findings if finding.layer is None}
    assert severities[f"baseline-{code}"] is (mq.Severity.CRITICAL if code == "size" else mq.Severity.INFO)
    assert len(severities) == 2


def test_sizes_of_unlike_models_are_not_compared() -> None:
    """Another float model, or no measured size, is told instead."""
    larger = attrs.evolve(report_of(LAYER), original_bytes=1, quantized_bytes=1)
    unmeasured = attrs.evolve(report_of(LAYER), validation=None)
    for before, after, code in (
        (larger, report_of(LAYER), "baseline-size-of-another-model"),
        (report_of(LAYER), unmeasured, "baseline-size-not-measured"),
    ):
        severities = {finding.code: finding.severity for finding in judged(before, after)}
        assert severities[code] is mq.Severity.WARNING


def test_an_info_built_by_hand_says_that_nothing_was_compared() -> None:
    """Without records per layer the gate is no gate, and says so."""
    info = mq.QuantizationInfo(["a"], [], 0, torch.int8, True)
    codes = by_code(mq.Gate(baseline=report_of(LAYER)).judge(info))
    assert {"compared-nothing", "layer-gone", "size-not-measured"} == codes.keys()
