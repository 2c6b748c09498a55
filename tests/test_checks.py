"""The built-in checks: which findings they yield, in which order, and what they advise."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.checks import AllLayersCheck, CalibrationCheck, NoLayersCheck, SqnrCheck
from monoquant.report.table import format_bytes

GATE = mq.AccuracyGate()
CRITICAL, WARNING, INFO = mq.Severity.CRITICAL, mq.Severity.WARNING, mq.Severity.INFO


def record(layer: str, weight: float | None = None, output: float | None = None, **fields: Any) -> mq.LayerReport:
    """A quantized Linear of 64x256 with what was measured on it."""
    values: dict[str, Any] = {
        "kind": "Linear",
        "shape": (64, 256),
        "parameters": 64 * 256,
        "action": mq.Action.QUANTIZE,
        "reason": "Linear weight",
        "bytes_before": 64 * 256 * 4,
        "bytes_after": 64 * 256 // 2,
        "scheme": mq.Scheme(),
        **fields,
    }
    return mq.LayerReport(layer, weight_sqnr_db=weight, output_sqnr_db=output, **values)


def kept(layer: str, shape: tuple[int, ...], action: mq.Action = mq.Action.SKIP) -> mq.LayerReport:
    return record(layer, shape=shape, parameters=math.prod(shape), action=action, scheme=None)


def info(*records: mq.LayerReport, sqnr_db: float | None = None, samples: int = 0) -> mq.QuantizationInfo:
    """The summary of a run over these layers."""
    chosen = {action: [one.layer for one in records if one.action is action] for action in mq.Action}
    return mq.QuantizationInfo(
        selected_layers=chosen[mq.Action.QUANTIZE],
        skipped_layers=chosen[mq.Action.SKIP],
        calibration_samples_used=samples,
        dtype=torch.int4,
        symmetric=False,
        sqnr_db=sqnr_db,
        layers=records,
    )


def judged(*records: mq.LayerReport, gate: mq.AccuracyGate = GATE, **fields: Any) -> list[mq.Finding]:
    return list(SqnrCheck().check(info(*records, **fields), gate))


def told(findings: list[mq.Finding]) -> list[tuple[str, str | None]]:
    return [(finding.code, finding.layer) for finding in findings]


def test_without_measurements_there_is_nothing_to_say() -> None:
    """Not measured is neither good nor bad."""
    assert judged() == []
    assert judged(record("a"), record("b")) == []


@pytest.mark.parametrize(
    ("measured", "codes"),
    [
        ({"output": 9.99}, ["sqnr-critical"]),
        ({"output": 10.0}, ["sqnr-low"]),
        ({"output": 19.99}, ["sqnr-low"]),
        ({"output": 20.0}, []),
        ({"output": math.inf}, []),
        ({"output": math.nan}, ["sqnr-critical"]),
        ({"output": -math.inf}, ["sqnr-critical"]),
        ({"weight": 9.99}, ["sqnr-critical"]),
        ({"weight": 10.0}, []),
        ({"weight": math.nan}, ["sqnr-critical"]),
        ({"weight": 9.0, "output": 25.0}, ["sqnr-critical"]),
        ({"weight": math.nan, "output": 25.0}, ["sqnr-critical"]),
        ({"weight": 15.0, "output": 25.0}, []),
    ],
)
def test_layers_against_the_gate(measured: dict[str, float], codes: list[str]) -> None:
    """Outputs are held against both thresholds, weights against the lower one; the comparison is strict."""
    assert [finding.code for finding in judged(record("a", **measured))] == codes


@settings(deadline=None)
@given(st.lists(st.floats(0, 40) | st.just(math.nan), min_size=1, max_size=8))
def test_every_failing_layer_is_named_worst_first(outputs: list[float]) -> None:
    """Exactly the layers below a threshold are told, NaN before everything, then by rising SQNR."""
    findings = judged(*[record(str(index), output=value) for index, value in enumerate(outputs)])
    rank = [-math.inf if math.isnan(value) else value for value in outputs]
    for code, low, high in (("sqnr-critical", -math.inf, 10.0), ("sqnr-low", 10.0, 20.0)):
        expected = sorted((value for value in rank if low <= value < high), key=float)
        assert [rank[int(str(finding.layer))] for finding in findings if finding.code == code] == expected


def test_the_worse_of_weight_and_output_is_told() -> None:
    """A critical finding shows the figure that failed, and of what it is."""
    low_weight, low_output = judged(record("a", weight=3.0, output=9.0), record("b", weight=9.0, output=4.0))
    assert "(3.00 dB) of the weight of layer 'a'" in low_weight.message
    assert "(4.00 dB) of the output of layer 'b'" in low_output.message
    assert low_weight.message.startswith("CRITICAL: Very low SQNR (3.00 dB)")
    assert low_weight.severity is CRITICAL


def test_low_outputs_ask_for_evaluation() -> None:
    """Between the thresholds a layer is a warning in the known words."""
    [finding] = judged(record("a", output=15.0))
    assert finding.severity is WARNING
    assert finding.message.startswith("Warning: Low SQNR (15.00 dB)")
    assert finding.remedy.startswith("Verify with task-specific evaluation.")


@pytest.mark.parametrize(
    ("weight", "codes"), [(15.91, []), (15.9, []), (15.89, ["sqnr-below-format"]), (9.0, ["sqnr-critical"])]
)
def test_weights_against_what_their_format_can_do(weight: float, codes: list[str]) -> None:
    """Three decibels less than Gaussian weights reach is a warning; below the gate it is critical instead."""
    assert [finding.code for finding in judged(record("a", weight=weight, reference_sqnr_db=18.9))] == codes


def test_the_largest_shortfall_comes_first() -> None:
    """Among layers below their format, the order is that of the distance, not of the figure."""
    records = [record("a", 14.0, reference_sqnr_db=18.0), record("b", 15.0, reference_sqnr_db=22.0)]
    findings = judged(*records)
    assert told(findings) == [("sqnr-below-format", "b"), ("sqnr-below-format", "a")]
    assert "7.0 dB under" in findings[0].message


def test_good_models_are_told_so_for_the_record() -> None:
    """Above 30 dB there is a finding without a warning; at 30 there is none."""
    [finding] = judged(record("a", output=31.0), sqnr_db=31.0)
    assert (finding.code, finding.severity) == ("sqnr-good", INFO)
    assert judged(record("a", output=30.0), sqnr_db=30.0) == []


def test_thresholds_move_the_gate() -> None:
    """Both thresholds are those of the gate, not constants."""
    gate = mq.AccuracyGate(sqnr_warning_threshold=40.0, sqnr_error_threshold=35.0)
    findings = judged(record("a", output=34.0), record("b", output=36.0), record("c", output=41.0), gate=gate)
    assert told(findings) == [("sqnr-critical", "a"), ("sqnr-low", "b")]


def test_the_remedy_names_layers_and_their_price() -> None:
    """One layer is named with the bytes that keeping it costs."""
    [finding] = judged(record("a", output=1.0))
    price = format_bytes(64 * 256 * 4 - 64 * 256 // 2)
    assert finding.remedy.startswith(
        f"Keep it in float with skip_layer_names=['a'] (+{price}), or reduce less with skip_to='int8', "
        "or use group_size=32 (+"
    )


def test_the_remedy_of_many_names_the_worst() -> None:
    """Of five failing layers the three worst are proposed, worst first."""
    findings = judged(*[record(name, output=value) for name, value in zip("abcde", (5, 4, 3, 2, 1), strict=True)])
    assert {finding.remedy for finding in findings} == {findings[0].remedy}
    assert "Keep the worst in float with skip_layer_names=['e', 'd', 'c']" in findings[0].remedy


def test_no_smaller_group_is_advised_where_it_is_small_already() -> None:
    """Groups of 32 are not told to become groups of 32."""
    [finding] = judged(record("a", output=1.0, scheme=mq.Scheme(group_size=32)))
    assert "group_size" not in finding.remedy


def test_a_root_layer_is_called_root() -> None:
    """The root's empty name is not shown as an empty pair of quotes."""
    [finding] = judged(record("", output=1.0))
    assert "root" in finding.message


def gaussian_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 256))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def quantized_bytes(symmetric: bool, group_size: int) -> int:
    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(group_size, symmetric)]
    return mq.Quantizer(passes).run(gaussian_model()).report.quantized_bytes


@pytest.mark.parametrize("symmetric", [False, True])
def test_prices_in_the_remedy_are_what_following_it_costs(symmetric: bool) -> None:
    """Doing what the remedy says makes the model larger by exactly the bytes it names."""
    gate = mq.AccuracyWarningPass(on_failure="ignore", sqnr_error_threshold=60, sqnr_warning_threshold=60)
    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(symmetric=symmetric), mq.ValidationPass(), gate]
    report = mq.Quantizer(passes).run(gaussian_model()).report
    remedy = next(finding.remedy for finding in report.findings if finding.code == "sqnr-critical")
    keep, regroup = re.findall(r"\(\+([^)]*)\)", remedy)
    names, other = re.fullmatch(r"Keep .*=\[(.*)\] \(.*\), or (.*), or use group_size=32 \(.*\)\.", remedy).groups()
    assert sorted(names.split(", ")) == ["'0'", "'2'"]
    assert other == "reduce less with skip_to='int8'"
    assert keep == format_bytes(report.original_bytes - report.quantized_bytes)
    assert regroup == format_bytes(quantized_bytes(symmetric, 32) - report.quantized_bytes)


@pytest.mark.parametrize(
    ("others", "silent"),
    [
        ((), False),
        ((kept("norm", (1024,)),), False),
        ((kept("small", (15, 32)),), False),
        ((kept("at the threshold", (16, 32)),), True),
        ((kept("embed", (50, 64)),), True),
        ((kept("conv", (8, 8, 3, 3), mq.Action.UNSUPPORTED),), True),
    ],
)
def test_all_layers_quantized(others: tuple[mq.LayerReport, ...], silent: bool) -> None:
    """Only a kept matrix of some size counts as caution; vectors and tiny layers stay in float anyway."""
    findings = list(AllLayersCheck().check(info(record("a", output=25.0), *others), GATE))
    assert [finding.code for finding in findings] == ([] if silent else ["all-layers-quantized"])


def test_all_layers_is_silent_when_none_was_quantized() -> None:
    """Nothing selected is another finding's matter."""
    assert list(AllLayersCheck().check(info(kept("norm", (8,))), GATE)) == []


def test_no_layers_quantized() -> None:
    """A run that quantized nothing says so, and where to look."""
    [finding] = NoLayersCheck().check(info(kept("embed", (50, 64))), GATE)
    assert (finding.code, finding.severity) == ("no-layers-quantized", WARNING)
    assert "skip rules" in finding.remedy
    assert list(NoLayersCheck().check(info(record("a")), GATE)) == []


@pytest.mark.parametrize(("samples", "count"), [(0, 0), (1, 1), (49, 1), (50, 0), (5000, 0)])
def test_few_calibration_samples(samples: int, count: int) -> None:
    """From one sample to 49 is few; none at all means no calibration was wanted."""
    findings = list(CalibrationCheck().check(info(record("a"), samples=samples), GATE))
    assert [finding.code for finding in findings] == ["low-calibration"] * count


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "10", None])
@pytest.mark.parametrize("name", ["sqnr_warning_threshold", "sqnr_error_threshold"])
def test_thresholds_are_finite_numbers(name: str, value: Any) -> None:
    """A threshold that nothing or everything would pass is refused by name."""
    with pytest.raises(mq.ConfigError, match=f"{name}=.*decibels"):
        mq.AccuracyGate(**{name: value})


def test_swapped_thresholds_are_refused() -> None:
    """The error threshold is the lower one; equal ones leave out the warnings between."""
    with pytest.raises(mq.ConfigError, match=r"sqnr_error_threshold=20.* above sqnr_warning_threshold=10"):
        mq.AccuracyGate(sqnr_warning_threshold=10.0, sqnr_error_threshold=20.0)
    assert mq.AccuracyGate(15, 15).sqnr_error_threshold == 15


def test_checks_are_values() -> None:
    """Built-in checks compare and read as what they are, and the base cannot be used as it is."""
    assert SqnrCheck() == SqnrCheck()
    assert repr(SqnrCheck()) == "SqnrCheck()"
    with pytest.raises(TypeError, match="check"):
        mq.WarningCheck()  # type: ignore[abstract]


def test_the_remedy_for_a_root_level_layer_gives_no_empty_name() -> None:
    """A bare Linear cannot be skipped by name, so the remedy names more bits and the smaller group only."""
    gate = mq.AccuracyWarningPass("ignore", sqnr_error_threshold=60, sqnr_warning_threshold=60)
    passes = [mq.SkipSelectionPass(), mq.Int4PackPass(), mq.ValidationPass(), gate]
    findings = mq.Quantizer(passes).run(nn.Linear(256, 64)).report.findings
    remedy = next(finding.remedy for finding in findings if finding.code == "sqnr-critical")
    assert re.fullmatch(r"Use bits=8, or use group_size=32 \(\+[\d.]+ K?i?B\)\.", remedy)
