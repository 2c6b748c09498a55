"""Limits on records: what keeps to them, what does not, and what was not measured."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monoquant as mq
from monoquant.gates.limits import packed_bytes

LAYER = mq.LayerReport(
    layer="a",
    kind="Linear",
    shape=(64, 128),
    parameters=8192,
    action=mq.Action.QUANTIZE,
    reason="",
    bytes_before=32768,
    bytes_after=4352,
    scheme=mq.Scheme(),
    weights=("weight",),
    matrices=((64, 128),),
    weight_sqnr_db=20.0,
)
KEPT = mq.LayerReport("kept", "Embedding", (8, 8), 64, mq.Action.SKIP, "", 2048, 2048)


def named(name: str, **values: Any) -> mq.LayerReport:
    return attrs.evolve(LAYER, layer=name, **values)


def report_of(*layers: mq.LayerReport, **validation: Any) -> mq.QuantReport:
    measured = mq.ValidationResult(**validation) if validation else None
    return mq.QuantReport(mq.Scheme(), layers, (), 1, 1, validation=measured)


def critical(report: mq.QuantReport, **limits: float) -> list[tuple[str, str | None]]:
    """Codes and layers of all findings, each of which must be CRITICAL."""
    findings = mq.Gate(**limits).judge(report)
    assert {finding.severity for finding in findings} <= {mq.Severity.CRITICAL}
    assert all(finding.remedy and finding.message.startswith("CRITICAL: ") for finding in findings)
    return [(finding.code, finding.layer) for finding in findings]


@pytest.mark.parametrize(
    ("value", "fails"),
    [(20.0, False), (19.999, True), (math.inf, False), (-math.inf, True), (math.nan, True), (35.0, False)],
)
@pytest.mark.parametrize("figure", ["output_sqnr_db", "weight_sqnr_db"])
def test_a_layer_must_reach_its_limit_and_nan_never_does(figure: str, value: float, fails: bool) -> None:
    """What is exactly at the limit passes."""
    found = critical(report_of(named("a", **{figure: value})), min_layer_sqnr_db=20)
    assert found == ([("gate-layer-sqnr", "a")] if fails else [])


def test_the_output_counts_where_it_was_measured_and_the_finding_says_which() -> None:
    """A Hessian method's weights may look bad: outputs are what is judged then."""
    layers = [
        named("fitted", weight_sqnr_db=9.0, output_sqnr_db=25.0),
        named("unheard", weight_sqnr_db=19.5),
        named("bad", weight_sqnr_db=30.0, output_sqnr_db=11.0),
        KEPT,
    ]
    report = attrs.evolve(report_of(*layers), calibration=mq.CalibrationFacts(100, 10))
    findings = mq.Gate(min_layer_sqnr_db=20).judge(report)
    assert [finding.layer for finding in findings] == ["bad", "unheard"]
    assert "SQNR of the output of layer 'bad' is 11.00 dB; min_layer_sqnr_db=20" in findings[0].message
    assert "SQNR of the weight of layer 'unheard' is 19.50 dB, its output was not measured;" in findings[1].message


def test_layers_that_were_not_measured_fail_the_gate() -> None:
    """A gate that has nothing to judge is not open; one finding counts them."""
    layers = [named("a"), named("b", weight_sqnr_db=None), named("c", weight_sqnr_db=None)]
    (finding,) = mq.Gate(min_layer_sqnr_db=10).judge(report_of(*layers))
    assert finding.code == "gate-not-measured"
    assert "2 of 3 quantized layers were not measured" in finding.message
    assert critical(report_of(KEPT), min_layer_sqnr_db=10) == [("gate-not-measured", None)]


@pytest.mark.parametrize(("value", "fails"), [(20.0, False), (19.99, True), (math.nan, True), (math.inf, False)])
def test_the_model_must_reach_its_limit(value: float, fails: bool) -> None:
    found = critical(report_of(LAYER, sqnr_db=value), min_model_sqnr_db=20)
    assert found == ([("gate-model-sqnr", None)] if fails else [])


def test_the_model_is_judged_by_what_was_measured() -> None:
    """The text says median of outputs, or all weights."""
    outputs = report_of(named("a", output_sqnr_db=15.0), sqnr_db=15.0)
    weights = report_of(LAYER, sqnr_db=15.0)
    assert "median SQNR of layer outputs is 15.00 dB" in mq.Gate(min_model_sqnr_db=20).judge(outputs)[0].message
    assert "SQNR of all weights together is 15.00 dB" in mq.Gate(min_model_sqnr_db=20).judge(weights)[0].message
    assert critical(report_of(LAYER), min_model_sqnr_db=20) == [("gate-not-measured", None)]


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (mq.Scheme(group_size=128), 4 + (16 + 4) / 128),
        (mq.Scheme(group_size=32, symmetric=True), 4.5),
        (mq.Scheme(8, None, True, torch.float32), 8 + 32 / 128),
        (mq.HalfScheme(torch.bfloat16), 16.0),
    ],
)
def test_bits_per_weight_are_those_of_real_buffers(scheme: Any, bits: float) -> None:
    """Exactly as many are allowed, and no more; the file's own figures agree."""
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False))
    options = {"dtype": scheme.dtype} if isinstance(scheme, mq.HalfScheme) else {"bits": scheme.bits}
    if isinstance(scheme, mq.Scheme) and scheme.bits == 4:
        options |= {"group_size": scheme.group_size, "symmetric": scheme.symmetric}
    report = mq.quantize(model, **options, plugins=False, accuracy_warning="ignore").report
    (record,) = report.layers
    taken = 8 * packed_bytes(record) / 8192
    assert taken == bits
    assert 0 <= record.bytes_after - packed_bytes(record) < 32  # a few that say what the others mean
    assert critical(report, max_bits_per_weight=taken) == []
    assert critical(report, max_bits_per_weight=taken - 1e-3) == [("gate-bits-per-weight", None)]


def test_what_has_more_bits_is_named() -> None:
    """Layers that rules reduced less are the first to look at."""
    int8 = mq.Scheme(8, None, True, torch.float32)
    report = report_of(LAYER, *(named(f"wide{index}", scheme=int8) for index in range(5)))
    (finding,) = mq.Gate(max_bits_per_weight=4.5).judge(report)
    assert "in 'wide0', 'wide1', 'wide2' and 2 more say, which have 8" in finding.remedy
    (finding,) = mq.Gate(max_bits_per_weight=4).judge(report_of(LAYER))
    assert finding.remedy == "Use larger groups or fewer bits."
    assert critical(report_of(KEPT), max_bits_per_weight=4) == [("gate-not-measured", None)]


@pytest.mark.parametrize(("ratio", "fails"), [(4.0, False), (3.99, True), (math.nan, True)])
def test_the_model_must_become_small_enough(ratio: float, fails: bool) -> None:
    """The remedy names what stayed float, and how large it is."""
    report = report_of(LAYER, KEPT, compression_ratio=ratio)
    assert critical(report, min_compression=4) == ([("gate-compression", None)] if fails else [])
    if fails:
        assert "1 layers of 2.0 KiB stayed float" in mq.Gate(min_compression=4).judge(report)[0].remedy
    assert critical(report_of(LAYER), min_compression=4) == [("gate-not-measured", None)]


@given(figures=st.lists(st.floats(-50, 150) | st.just(math.nan), min_size=1, max_size=6), limit=st.floats(-50, 150))
def test_a_gate_passes_exactly_what_reaches_it(figures: list[float], limit: float) -> None:
    """Every layer below the limit is named, the worst first, and no other."""
    layers = [named(str(index), output_sqnr_db=value) for index, value in enumerate(figures)]
    found = [layer for _, layer in critical(report_of(*layers), min_layer_sqnr_db=limit)]
    assert sorted(found) == [str(index) for index, value in enumerate(figures) if not value >= limit]
    worst = [-math.inf if math.isnan(figures[int(layer)]) else figures[int(layer)] for layer in found if layer]
    assert worst == sorted(worst)
