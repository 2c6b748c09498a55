"""Two reports side by side: what counts as a change, what can be compared, and the table that people read."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import monoquant as mq
from monoquant.report.layer_difference import LayerDifference, lost_db

INT4, INT8 = mq.Scheme(), mq.Scheme(8, None, True)
WARNING, CRITICAL = mq.Severity.WARNING, mq.Severity.CRITICAL
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
    algorithm="clip_search",
    weight_sqnr_db=20.0,
)
KEPT: dict[str, Any] = {
    "action": mq.Action.SKIP,
    "scheme": None,
    "weights": (),
    "algorithm": "",
    "weight_sqnr_db": None,
    "reason": "name matches 'a'",
}


def report_of(*layers: mq.LayerReport, **fields: Any) -> mq.QuantReport:
    return mq.QuantReport(
        **{"scheme": INT4, "layers": layers, "findings": (), "original_bytes": 20000, "quantized_bytes": 4000} | fields
    )


def layer_difference(then: dict[str, Any] | None, now: dict[str, Any] | None) -> LayerDifference:
    """What the comparison says about one layer, None where a report does not have it."""
    reports = [report_of(*([] if one is None else [attrs.evolve(LAYER, **one)])) for one in (then, now)]
    (found,) = mq.compare_reports(*reports).layers
    return found


@pytest.mark.parametrize(
    ("then", "now", "status", "measured_on"),
    [
        ({}, {}, "compared", "weight"),
        ({"output_sqnr_db": 30.0}, {"output_sqnr_db": 29.0}, "compared", "output"),
        ({}, {"output_sqnr_db": 29.0}, "measured-otherwise", None),
        ({"output_sqnr_db": 29.0}, {}, "measured-otherwise", None),
        ({}, {"weight_sqnr_db": None}, "not-measured", None),
        ({"weight_sqnr_db": None}, {"weight_sqnr_db": None}, "not-measured", None),
        ({"weight_sqnr_db": math.nan}, {}, "not-measured", "weight"),
        ({}, {"weight_sqnr_db": math.nan}, "compared", "weight"),
        ({}, {"scheme": INT8}, "scheme-changed", "weight"),
        ({}, KEPT, "scheme-changed", None),
        (KEPT, {}, "scheme-changed", None),
        (KEPT, KEPT, "float", None),
        ({}, {"shape": (64, 32)}, "layer-changed", None),
        ({}, {"weights": ("other",)}, "layer-changed", None),
        ({}, None, "removed", None),
        (None, {}, "added", None),
    ],
)
def test_only_like_is_compared_with_like(then: Any, now: Any, status: str, measured_on: str | None) -> None:
    """Figures stand side by side where they are of the same weights and the same kind, and nowhere else."""
    found = layer_difference(then, now)
    assert (found.status, found.measured_on) == (status, measured_on)
    figures = found.before_db, found.after_db
    assert all(figure is None for figure in figures) == (measured_on is None)
    if measured_on is not None:
        assert figures == tuple(
            pytest.approx((LAYER_DB | side)[f"{measured_on}_sqnr_db"], nan_ok=True) for side in (then, now)
        )
    assert (found.loss_db is None) == (measured_on is None or math.isnan(figures[0] or 0.0))


LAYER_DB = {"weight_sqnr_db": 20.0}


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [
        (20.3, 20.0, "0.3"),  # 0.3000000000000007 in floats
        (20.0, 19.499999999999996, "0.500000000000004"),
        (20.0, 25.0, "-5.0"),
        (20.0, math.nan, "inf"),
        (20.0, -math.inf, "inf"),
        (20.0, math.inf, "-inf"),
        (math.inf, math.inf, "0"),
        (-math.inf, -math.inf, "0"),
        (math.inf, math.nan, "inf"),
        (math.nan, 20.0, None),
        (math.nan, math.nan, None),
    ],
)
def test_losses_are_exact_in_decimals(before: float, after: float, loss: str | None) -> None:
    """Figures count as they are written, and those that are not finite have an answer as well."""
    assert lost_db(before, after) == (None if loss is None else Decimal(loss))


@given(
    falls=st.lists(st.tuples(st.integers(-10_000, 10_000), st.integers(-500, 500)), min_size=1, max_size=8),
    tolerance=st.integers(0, 500),
    places=st.integers(0, 6),
)
def test_worse_than_agrees_with_whole_numbers(falls: list[tuple[int, int]], tolerance: int, places: int) -> None:
    """Scaled to decimals, the layers beyond the tolerance are those of integer arithmetic, the worst first."""
    unit = 10**places
    then = [attrs.evolve(LAYER, layer=f"l{i}", weight_sqnr_db=value / unit) for i, (value, _) in enumerate(falls)]
    now = [attrs.evolve(LAYER, layer=f"l{i}", weight_sqnr_db=(v - fall) / unit) for i, (v, fall) in enumerate(falls)]
    difference = mq.compare_reports(report_of(*then), report_of(*now))
    expected = sorted((i for i, (_, fall) in enumerate(falls) if fall > tolerance), key=lambda i: -falls[i][1])
    assert [one.layer for one in difference.worse_than(tolerance / unit)] == [f"l{i}" for i in expected]
    assert len(difference.worst_first()) == len(falls)


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf, True, "0.5", None])
def test_tolerances_must_be_finite_numbers(tolerance: Any) -> None:
    """A gate with no number in it is no gate."""
    with pytest.raises(mq.ConfigError, match=r"tolerance_db=.*: give a finite number >= 0"):
        mq.compare_reports(report_of(), report_of()).worse_than(tolerance)


def test_other_things_than_reports_are_refused() -> None:
    """The error names the argument."""
    with pytest.raises(mq.InputError, match="after is a dict: give a QuantReport"):
        mq.compare_reports(report_of(), {})  # type: ignore[arg-type]
    with pytest.raises(mq.InputError, match="before is a str"):
        mq.compare_reports("a.json", report_of())  # type: ignore[arg-type]
    with pytest.raises(mq.InputError, match="needs a record"):
        _ = LayerDifference(None, None).layer


def test_changes_are_named_with_both_sides() -> None:
    """Everything that was decided otherwise is told; rows only where outputs were measured on them."""
    now = {"scheme": INT8, "algorithm": "gptq", "kind": "Conv1d", "compute": "other", "sample_rows": 9}
    told = {change.what: (change.before, change.after) for change in layer_difference({}, now).changes}
    assert told == {
        "kind": ("Linear", "Conv1d"),
        "scheme": (str(INT4), str(INT8)),
        "algorithm": ("clip_search", "gptq"),
        "compute": (None, "other"),
    }
    rows = [{"output_sqnr_db": 30.0, "sample_rows": count} for count in (8, 9)]
    assert [str(change) for change in layer_difference(*rows).changes] == ["rows 8 -> 9"]
    assert [str(change) for change in layer_difference({}, KEPT).changes] == [
        "decision quantize -> skip",
        "reason - -> name matches 'a'",
        "weights weight -> -",
        f"scheme {INT4} -> -",
        "algorithm clip_search -> -",
    ]


@pytest.mark.parametrize(("of_then", "of_now"), [(("b",), ("a",)), ((), ("a",)), (("b",), ())])
def test_layers_are_found_under_any_of_their_names(of_then: tuple[str, ...], of_now: tuple[str, ...]) -> None:
    """A module that is used twice may be listed under its other name now."""
    then, now = attrs.evolve(LAYER, aliases=of_then), attrs.evolve(LAYER, layer="b", aliases=of_now)
    finding = mq.Finding("sqnr-low", WARNING, "Low.", "a")
    old, new = report_of(then, findings=(finding,)), report_of(now, findings=(attrs.evolve(finding, layer="b"),))
    difference = mq.compare_reports(old, new)
    (found,) = difference.layers
    assert (found.layer, found.status, [str(one) for one in found.changes]) == ("b", "compared", ["name a -> b"])
    assert difference.new_findings == difference.gone_findings == ()


@pytest.mark.parametrize(
    ("gone", "new", "guesses"),
    [
        (["fc"], ["model.fc"], ["model.fc"]),
        (["model.fc"], ["fc"], ["fc"]),
        (["old"], ["new"], ["new"]),
        (["old", "older"], ["new"], [None, None]),
        (["old"], ["new", "newer"], [None]),
        (["fc"], ["x.fc", "y.fc"], [None]),
        (["abfc"], ["fc"], ["fc"]),  # the only one alike
        (["abfc", "b.fc"], ["fc"], [None, "fc"]),
        ([""], ["fc"], ["fc"]),
    ],
)
def test_renamed_layers_are_guessed(gone: list[str], new: list[str], guesses: list[str | None]) -> None:
    """A layer that is gone names the one that it may be now, if there is only one such."""
    reports = (report_of(*(attrs.evolve(LAYER, layer=name) for name in names)) for names in (gone, new))
    difference = mq.compare_reports(*reports)
    assert [one.new_name for one in difference.by_status("removed")] == guesses
    assert [one.layer for one in difference.by_status("added")] == new
    assert {one.new_name for one in difference.by_status("added")} == {None}


def test_a_layer_of_another_kind_is_no_guess() -> None:
    """Same name behind the prefix, but another shape."""
    difference = mq.compare_reports(report_of(LAYER), report_of(attrs.evolve(LAYER, layer="m.a", shape=(64, 32))))
    assert difference.by_status("removed")[0].new_name is None


def test_findings_pair_by_code_and_layer_whatever_their_figures() -> None:
    """A finding with other figures is not new; one more of a kind is, and it is the one with new words."""
    low = mq.Finding("sqnr-low", WARNING, "SQNR of 'a' is 15.0 dB.", "a")
    rules = [mq.Finding("rule", WARNING, f"Rule {index}.") for index in range(3)]
    before = report_of(findings=(low, rules[0], rules[1]))
    after = report_of(
        findings=(
            attrs.evolve(low, severity=CRITICAL, message="SQNR of 'a' is 9.0 dB."),
            attrs.evolve(low, layer="b"),
            *rules,
        )
    )
    forth, back = mq.compare_reports(before, after), mq.compare_reports(after, before)
    assert [(one.severity, one.layer or one.message) for one in forth.new_findings] == [
        (CRITICAL, "a"),
        (WARNING, "b"),
        (WARNING, "Rule 2."),
    ]
    assert forth.gone_findings == (low,)
    assert (back.new_findings, back.gone_findings) == (forth.gone_findings, forth.new_findings)
    moved = report_of(findings=(attrs.evolve(low, message="SQNR of 'a' is 14.9 dB."),))
    assert mq.compare_reports(report_of(findings=(low,)), moved).new_findings == ()


def validated(value: float | None) -> mq.ValidationResult:
    return mq.ValidationResult(sqnr_db=value)


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ((validated(21.0), 30.0, None), (validated(20.0), 29.0, None), ("output", 30.0, 29.0)),
        ((validated(21.0), None, None), (validated(20.0), None, None), ("weight", 21.0, 20.0)),
        ((None, None, 21.0), (validated(20.0), None, 20.0), ("weight", 21.0, 20.0)),
        ((validated(21.0), 30.0, 5.0), (validated(20.0), None, 5.0), None),
        ((None, None, None), (validated(20.0), None, 5.0), None),
    ],
)
def test_headlines_are_compared_alike_only(then: Any, now: Any, expected: Any) -> None:
    """The median over outputs and the pooled weights are two figures."""
    reports = []
    for validation, output, pooled in (then, now):
        layer = attrs.evolve(LAYER, output_sqnr_db=output)
        shown = validation if output is None else validated(output)
        reports.append(report_of(layer, validation=shown, pooled_weight_sqnr_db=pooled))
    found = mq.compare_reports(*reports).headline
    assert (None if found is None else attrs.astuple(found)) == expected


TWO = (
    report_of(
        LAYER,
        attrs.evolve(LAYER, layer="same"),
        attrs.evolve(LAYER, layer="gone"),
        attrs.evolve(LAYER, layer="better"),
        findings=(mq.Finding("old", WARNING, "Old one."),),
        versions=(("torch", "2.12"), ("monoquant", "0.1"), ("plugin", "1")),
        calibration=mq.CalibrationFacts(8, 2),
        recipe="[scheme]\nbits = 4\n",
    ),
    report_of(
        attrs.evolve(LAYER, weight_sqnr_db=17.0, algorithm="gptq"),
        attrs.evolve(LAYER, layer="same", weight_sqnr_db=20.001),
        attrs.evolve(LAYER, layer="better", weight_sqnr_db=math.inf),
        attrs.evolve(LAYER, layer="new", kind="Conv2d"),
        findings=(mq.Finding("new", CRITICAL, "New one.", origin=mq.Origin("ci", "1")),),
        versions=(("torch", "2.13"), ("monoquant", "0.1")),
        calibration=mq.CalibrationFacts(9, 2),
        quantized_bytes=5000,
        original_bytes=21000,
        recipe="[scheme]\nbits = 4\ngroup_size = 32\n",
    ),
)


def test_the_text_shows_the_worst_change_first_and_counts_the_rest() -> None:
    """One line per layer that is not as it was; sizes, versions, findings and the recipe around them."""
    text = str(mq.compare_reports(*TWO))
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("---")) + 1
    assert [line.split()[0] for line in lines[start : start + 4]] == ["a", "new", "gone", "better"]
    assert lines[start].split()[1:5] == ["weight", "20.00", "17.00", "-3.00"]
    assert "algorithm clip_search -> gptq" in lines[start]
    assert "only in the second" in lines[start + 1]
    assert "only in the first" in lines[start + 2]
    assert lines[start + 3].split()[3:5] == ["inf", "+inf"]
    assert lines[start + 4] == "1 other layers: the same decision, and SQNR by less than 0.005 dB apart"
    for fact in (
        "quantized: 3.9 KiB -> 4.9 KiB (+25.00 %)",
        "float model: 19.5 KiB -> 20.5 KiB (+5.00 %)",
        "headline SQNR: not measured alike in both, and not compared",
        "calibration samples 8 -> 9",
        "versions: torch 2.12 -> 2.13, plugin 1 -> -",
        "new findings:\n  critical new: New one. [ci 1]",
        "findings that are gone:\n  warning  old: Old one.",
        "recipe:\n  @@ -2 +2,2 @@\n   bits = 4\n  +group_size = 32",
    ):
        assert fact in text


def test_a_report_does_not_differ_from_itself() -> None:
    """Neither a table nor a finding: only how many layers are the same."""
    assert str(mq.compare_reports(TWO[0], TWO[0])).splitlines() == [
        "quantized: 3.9 KiB -> 3.9 KiB",
        "headline SQNR: not measured alike in both, and not compared",
        "4 layers: the same decision, and SQNR by less than 0.005 dB apart",
    ]


def test_headlines_in_the_text() -> None:
    """What they were measured on stands beside them."""
    then, now = (
        report_of(
            attrs.evolve(LAYER, output_sqnr_db=value), validation=validated(value), pooled_weight_sqnr_db=value - 1
        )
        for value in (30.0, 28.5)
    )
    assert str(mq.compare_reports(then, now)).splitlines()[1:3] == [
        "layer outputs, median: 30.00 -> 28.50 dB",
        "weights, pooled: 29.00 -> 27.50 dB",
    ]
    pooled = (report_of(LAYER, pooled_weight_sqnr_db=value) for value in (30.0, 28.5))
    assert str(mq.compare_reports(*pooled)).splitlines()[1:2] == ["weights, pooled: 30.00 -> 28.50 dB"]


def test_the_dict_is_strict_json_and_complete() -> None:
    """Every field is there, with a version."""
    data = json.loads(json.dumps(mq.compare_reports(*TWO).to_dict(), allow_nan=False))
    assert data.keys() == {"version"} | {field.name for field in attrs.fields(mq.ReportDifference)}
    assert data["version"] == 1
    by_name = {one["layer"]: one for one in data["layers"]}
    assert by_name["a"] == {
        "layer": "a",
        "status": "compared",
        "new_name": None,
        "measured_on": "weight",
        "before_db": 20.0,
        "after_db": 17.0,
        "loss_db": 3.0,
        "bytes_before": 2432,
        "bytes_after": 2432,
        "changes": [{"what": "algorithm", "before": "clip_search", "after": "gptq"}],
    }
    assert (by_name["better"]["after_db"], by_name["better"]["loss_db"]) == ("inf", "-inf")
    assert (by_name["new"]["bytes_before"], by_name["gone"]["bytes_after"]) == (None, None)
    assert data["versions"][0] == {"what": "torch", "before": "2.12", "after": "2.13"}
