"""Reports: JSON and back, and the table that people read."""

from __future__ import annotations

import json
import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.report.plain import from_plain, to_plain
from monoquant.report.table import format_bytes
from monoquant.report.wording import texts

floats = st.none() | st.floats(allow_nan=False)
origins = st.builds(mq.Origin, st.text(), st.none() | st.text())
code_schemes = st.builds(
    mq.Scheme,
    st.sampled_from([4, 8]),
    st.none() | st.integers(1, 4096),
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
integer_schemes = st.builds(
    mq.Scheme,
    st.just(8),
    st.none(),
    st.just(True),
    st.sampled_from([torch.float16, torch.float32]),
    st.sampled_from(["dynamic", "static"]),
)
half_schemes = st.builds(mq.HalfScheme, st.sampled_from([torch.float16, torch.bfloat16]))
schemes = code_schemes | integer_schemes | half_schemes
records = st.builds(
    mq.LayerReport,
    layer=st.text(),
    kind=st.text(),
    shape=st.lists(st.integers(0, 99), max_size=4).map(tuple),
    parameters=st.integers(0),
    action=st.sampled_from(mq.Action),
    reason=st.text(),
    bytes_before=st.integers(0),
    bytes_after=st.integers(0),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    rule=st.none() | st.text(),
    origin=origins,
    scheme=st.none() | schemes,
    weights=st.lists(st.text(), max_size=3).map(tuple),
    compute=st.text(),
    weight_sqnr_db=floats,
    output_sqnr_db=floats,
    aliases=st.lists(st.text(), max_size=2).map(tuple),
)
findings = st.builds(
    mq.Finding, st.text(), st.sampled_from(mq.Severity), st.text(), st.none() | st.text(), st.text(), origins
)
reports = st.builds(
    mq.QuantReport,
    scheme=schemes,
    layers=st.lists(records, max_size=3).map(tuple),
    findings=st.lists(findings, max_size=3).map(tuple),
    original_bytes=st.integers(0),
    quantized_bytes=st.integers(0),
    pooled_weight_sqnr_db=floats,
    calibration=st.none() | st.builds(mq.CalibrationFacts, st.integers(0), st.integers(0)),
    validation=st.none() | st.builds(mq.ValidationResult, floats, errors=st.lists(st.text(), max_size=2)),
    versions=st.lists(st.tuples(st.text(), st.text()), max_size=2).map(tuple),
)


@given(reports)
def test_json_round_trip(report: mq.QuantReport) -> None:
    """Any report survives strict JSON, infinities included, and can be printed."""
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert mq.QuantReport.from_dict(json.loads(text)) == report
    assert str(report)


def test_nan_survives_json() -> None:
    """NaN is no JSON number, and comes back as NaN."""
    stored = json.loads(json.dumps(to_plain(mq.ValidationResult(math.nan)), allow_nan=False))
    assert math.isnan(from_plain(mq.ValidationResult, stored).sqnr_db)


BROKEN = [
    ({}, "report version None"),
    ({"version": 2}, "report version 2: this monoquant reads version 1"),
    ({"version": 1}, "stored QuantReport cannot be read"),
    ({"version": 1, "scheme": {"bits": 3}}, "cannot be read: bits=3"),
    ({"version": 1, "scheme": {"dtype": "float64"}}, "cannot be read: dtype=torch.float64"),
    ({"version": 1, "scheme": {"dtype": "float16", "bits": 4}}, "cannot be read: .*'dtype'"),
    ({"version": 1, "scheme": {"bits": 8, "activations": "both"}}, "'both' is not one of"),
    ({"version": 1, "scheme": {}, "layers": 3}, "3 is not a list"),
    ({"version": 1, "scheme": {}, "layers": [], "findings": [], "original_bytes": "1"}, "'1' is not a int"),
    ({"version": 1, "scheme": {"scale_dtype": "nn"}}, "'nn' is not a torch dtype"),
    ({"version": 1, "colour": "red"}, "cannot be read"),
]


@pytest.mark.parametrize(("data", "text"), BROKEN, ids=[text for _, text in BROKEN])
def test_broken_reports_are_refused(data: dict[str, Any], text: str) -> None:
    """Another version, missing and unknown fields and wrong kinds are FileErrors."""
    with pytest.raises(mq.FileError, match=text):
        mq.QuantReport.from_dict(data)


def test_the_table_shows_every_layer_worst_first(small: nn.Module, tokens: Any) -> None:
    """One line per layer: quantized ones by rising SQNR, then the rest by falling size, each with its reason."""
    report = mq.quantize(small, calibration_data=tokens, accuracy_warning="ignore", plugins=False).report
    lines = str(report).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("---")) + 1
    table = [line.split() for line in lines[start : start + len(report.layers)]]
    measured = [float(row[7]) for row in table if row[1] == "quantize"]
    assert len(measured) == 4
    assert measured == sorted(measured)
    assert [row[0] for row in table[4:7]] == ["lm_head", "embed", "bn"]
    assert {row[0] for row in table} == {record.layer for record in report.layers}
    assert "type is Embedding" in lines[start + 5]
    assert "4 quantize, 0 unsupported, 5 skip" in lines[0]


def test_the_summary_tells_sizes_sqnr_and_versions(small: nn.Module, tokens: Any) -> None:
    """The first lines hold what a person looks for first."""
    report = mq.quantize(small, calibration_data=tokens, accuracy_warning="ignore", plugins=False).report
    text = str(report)
    outputs = [record.output_sqnr_db for record in report.layers if record.output_sqnr_db is not None]
    assert f"{format_bytes(report.original_bytes)} -> {format_bytes(report.quantized_bytes)}" in text
    assert f"worst {min(outputs):.2f} dB over 4 layers" in text
    assert f"pooled {report.pooled_weight_sqnr_db:.2f} dB" in text
    assert "calibration: 120 samples in 10 batches" in text
    assert f"monoquant {mq.__version__}, torch {torch.__version__}" in text


def test_findings_are_told_once_per_kind() -> None:
    """Many layers with one problem make one text that names the worst; model-level findings stay apart."""
    warning, info = mq.Severity.WARNING, mq.Severity.INFO
    many = [mq.Finding("low", warning, f"Layer {index} is low.", f"l{index}", "Do this.") for index in range(9)]
    model = [mq.Finding("rule", warning, f"Rule {index}.", None, "Mend it.") for index in range(2)]
    told = texts([*many, *model, mq.Finding("note", info, "Nothing.")])
    assert told == [
        "Layer 0 is low. Likewise 'l1', 'l2', 'l3', 'l4', 'l5' and 3 more layers. Do this.",
        "Rule 0. Mend it.",
        "Rule 1. Mend it.",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 30, "5.00 GiB"),
        (5 << 40, "5120.00 GiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    """Binary units."""
    assert format_bytes(count) == text


def test_frozen() -> None:
    """Results cannot be changed by accident."""
    for value in (mq.ValidationResult(), mq.CalibrationFacts(1, 1), mq.Origin("x")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, attrs.fields(type(value))[0].name, 1)


def test_what_a_report_lacks_is_named() -> None:
    """By its own words, not by those of Python."""
    with pytest.raises(
        mq.FileError, match=r"QuantReport cannot be read: it lacks 'layers', 'findings', 'original_bytes'"
    ):
        mq.QuantReport.from_dict({"version": 1, "scheme": {}})
