"""BudgetPass, and quantize with a goal: what is promised of bytes and decibels is kept."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.modules.packed_matrix import PackedMatrix
from tests.passes.budgets import DATA, FINE, GOALS, Net, answer, batches, bits_per_weight, chosen, codes, quantize


def estimated_noise(result: mq.QuantResult) -> float:
    return math.fsum(one.options[one.chosen].noise for one in result.report.tradeoff.layers)


TARGETS = [4.3, 4.75, 5.5, 7.0, 9.0, 12.5, 16.0]


@pytest.fixture(scope="module")
def by_target() -> dict[float, mq.QuantResult]:
    """Net within several budgets; not to be changed."""
    return {target: quantize(target_bits_per_weight=target) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_bits_stay_under_the_target(by_target: dict[float, mq.QuantResult], target: float) -> None:
    """Those that the packed buffers take, which are those that the report tells; and little is left over."""
    result = by_target[target]
    found = bits_per_weight(result.model)
    assert found <= target
    assert result.report.tradeoff.bits_per_weight == pytest.approx(found, rel=1e-12)
    assert found > target - 4.0


def test_more_budget_never_gives_more_noise(by_target: dict[float, mq.QuantResult]) -> None:
    """As estimated, always; of this model as measured, too."""
    y, x = Net()(DATA[0]), DATA[0]
    estimated = [estimated_noise(by_target[target]) for target in TARGETS]
    real = [float((by_target[target].model(x) - y).detach().square().sum()) for target in TARGETS]
    assert all(one >= other for one, other in itertools.pairwise(estimated))
    assert all(one >= other * 0.9 for one, other in itertools.pairwise(real))
    assert real[0] > 1000 * real[-1]


def test_the_noise_of_a_choice_is_on_or_over_the_curve(by_target: dict[float, mq.QuantResult]) -> None:
    """Nothing is under the line between two points of the curve; with bits enough, its end is taken."""
    for result in by_target.values():
        bits, noise = bits_per_weight(result.model), estimated_noise(result)
        (low, high) = next(
            (low, high)
            for low, high in itertools.pairwise(result.report.tradeoff.curve)
            if low.bits_per_weight - 1e-9 <= bits <= high.bits_per_weight + 1e-9
        )
        share = (bits - low.bits_per_weight) / (high.bits_per_weight - low.bits_per_weight)
        assert noise >= (low.noise + share * (high.noise - low.noise)) * (1 - 1e-6) - 1e-9 * low.noise
    last = by_target[16.0].report.tradeoff
    assert last.bits_per_weight == last.curve[-1].bits_per_weight == 16


def test_plan_report_tradeoff_and_model_agree(by_target: dict[float, mq.QuantResult]) -> None:
    """On the representation of each layer; several are used."""
    result = by_target[5.5]
    schemes = chosen(result)
    assert {one.layer: one.scheme for one in result.report.tradeoff.layers} == schemes
    assert {name: result.model.get_submodule(name).packed_weight.scheme for name in schemes} == schemes
    assert len(set(schemes.values())) > 1


@pytest.mark.parametrize(("goal", "text"), GOALS, ids=[next(iter(goal)) for goal, _ in GOALS])
def test_reasons_name_the_goal(goal: dict[str, Any], text: str) -> None:
    """Of every layer that became something else than planned; of others the reason is the usual one."""
    records = [record for record in quantize(**goal).report.layers if record.scheme is not None]
    changed = [record for record in records if record.scheme != FINE]
    assert changed
    for record in records:
        expected = f"Linear weight to {record.scheme}"
        assert record.reason.startswith(expected + (f", {text}" if record in changed else ""))
        assert (text in record.reason) == (record in changed)


@pytest.mark.parametrize("algorithm", ["round_to_nearest", "gptq"])
@pytest.mark.parametrize(("goal", "_text"), GOALS[:2], ids=["bits", "decibels"])
def test_runs_repeat_each_other(goal: dict[str, Any], _text: str, algorithm: str) -> None:
    """Equal bytes, equal reports, whatever the global generators are at."""
    first = quantize(algorithm=algorithm, **goal)
    torch.manual_seed(123)
    second = quantize(algorithm=algorithm, **goal)
    assert second.report == first.report
    one, other = first.model.state_dict(), second.model.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("options", [{"quality": "fast"}, {"quality": "balanced"}, {"quality": "best"}, {}])
def test_every_quality_meets_a_budget(options: dict[str, Any]) -> None:
    """And spends most of it."""
    calm = {"accuracy_warning": "ignore", "plugins": False, "calibration_data": DATA}
    result = mq.quantize(Net(), target_bits_per_weight=4.8, **calm, **options)
    assert 4.4 < bits_per_weight(result.model) <= 4.8
    assert result.report.tradeoff.criterion == "output"


def test_too_small_a_target_says_what_the_least_is() -> None:
    """In bits per weight, to three digits."""
    with pytest.raises(mq.InputError, match=r"target_bits_per_weight=1\.5 is less than the smallest") as caught:
        quantize(target_bits_per_weight=1.5)
    least = quantize().report
    assert least.tradeoff is None
    least = math.ceil(bits_per_weight(quantize().model) * 1000) / 1000
    assert f"which is {least:.3f}: give that or more" in str(caught.value)


@pytest.mark.parametrize("columns", [96, 84, 150, 200])
def test_the_least_that_is_told_suffices(columns: int) -> None:
    """Give that or more, it says."""
    model, data = nn.Sequential(nn.Linear(columns, 96)), batches(32, columns)
    with pytest.raises(mq.InputError) as caught:
        quantize(model, data, target_bits_per_weight=1)
    told = str(caught.value).split("which is ")[1].split(":")[0]
    assert quantize(model, data, target_bits_per_weight=float(told)).report.tradeoff.bits_per_weight <= float(told)


def test_every_point_of_the_curve_is_a_budget_that_reaches_it() -> None:
    """To the byte, although points are rounded numbers."""
    result = quantize(target_bits_per_weight=16)
    for point in result.report.tradeoff.curve:
        again = quantize(target_bits_per_weight=point.bits_per_weight, run_validation=False)
        assert again.report.tradeoff.bits_per_weight == point.bits_per_weight


@pytest.mark.parametrize("target", [15.0, 22.0, 26.0, 40.0])
def test_each_layer_reaches_the_decibels_asked_for_as_cheaply_as_it_can(target: float) -> None:
    """Of those options that reach it, the smallest; the report's SQNR, on other rows, is near."""
    result = quantize(target_sqnr_db=target)
    records = {record.layer: record for record in result.report.layers}
    for one in result.report.tradeoff.layers:
        reaching = [option for option in one.options if option.output_sqnr_db >= target]
        assert one.options[one.chosen] == min(reaching, key=lambda option: option.size)
        assert records[one.layer].output_sqnr_db == pytest.approx(one.options[one.chosen].output_sqnr_db, abs=1.0)
    assert "target-not-met" not in codes(result)


def test_other_targets_choose_other_representations() -> None:
    """From all INT4 to all 16 bits."""
    assert {str(scheme) for scheme in chosen(quantize(target_sqnr_db=10)).values()} == {str(FINE)}
    assert {scheme.target for scheme in chosen(quantize(target_sqnr_db=60)).values()} == {"float16"}


def test_decibels_out_of_reach_are_told_of_each_layer() -> None:
    """The best there is, is taken; nobody has to search for what was missed."""
    result = quantize(target_sqnr_db=200, accuracy_warning="ignore")
    found = [finding for finding in result.report.findings if finding.code == "target-not-met"]
    assert [finding.layer for finding in found] == ["a", "b", "c"]
    assert {finding.severity for finding in found} == {mq.Severity.WARNING}
    for finding, one in zip(found, result.report.tradeoff.layers, strict=True):
        reached = one.options[one.chosen].output_sqnr_db
        assert reached == max(option.output_sqnr_db for option in one.options)
        assert f"reaches {reached:.2f} dB" in finding.message


@pytest.mark.parametrize(("goal", "_text"), GOALS, ids=[next(iter(goal)) for goal, _ in GOALS])
def test_in_place_is_the_same(goal: dict[str, Any], _text: str) -> None:
    """The very object, with the same answers; otherwise it is left alone."""
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = quantize(model, **goal)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    result = quantize(model, inplace=True, **goal)
    assert result.model is model
    assert torch.equal(answer(model, DATA[0]), answer(expected.model, DATA[0]))


def test_a_mixed_result_is_saved_and_loaded(tmp_path: Any, by_target: dict[float, mq.QuantResult]) -> None:
    """Each layer in its own representation; the stored report holds the trade-off."""
    result = by_target[5.5]
    mq.save(result, tmp_path / "mixed.safetensors")
    loaded = mq.load(tmp_path / "mixed.safetensors", Net(seed=9))
    assert torch.equal(answer(loaded, DATA[0]), answer(result.model, DATA[0]))
    assert mq.load_report(tmp_path / "mixed.safetensors") == result.report


@pytest.mark.parametrize(("goal", "_text"), GOALS, ids=[next(iter(goal)) for goal, _ in GOALS])
def test_reports_of_goals_survive_json(goal: dict[str, Any], _text: str) -> None:
    """Trade-off and evaluations included, infinities too, where an option is exact."""
    model = Net()
    with torch.no_grad():
        model.c.weight.copy_(model.c.weight.half())
    report = quantize(model, **goal).report
    assert report.tradeoff is not None
    assert math.inf in [option.output_sqnr_db for option in report.tradeoff.layers[2].options]
    again = mq.QuantReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
    assert again == report
    assert str(again.tradeoff) == str(report.tradeoff)
    assert len(report.tradeoff.evaluations) == (0 if "evaluate" not in goal else len(again.tradeoff.evaluations))


def test_the_tradeoff_in_print_marks_the_choice(by_target: dict[float, mq.QuantResult]) -> None:
    """One mark on the curve where the choice is one of its points, and each layer's representation."""
    tradeoff = by_target[16.0].report.tradeoff
    lines = str(tradeoff).splitlines()
    (marked,) = [line for line in lines if line.endswith("<- chosen")]
    assert float(marked.split()[0]) == pytest.approx(tradeoff.bits_per_weight, abs=1e-3)
    for one in tradeoff.layers:
        assert any(line.startswith(f"{one.layer}  ") and line.endswith(f"  {one.scheme}") for line in lines)


def test_a_goal_is_no_word_of_the_budget_itself() -> None:
    """A run with a goal that changes nothing warns of nothing but accuracy, and emits no other warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantize(target_sqnr_db=10)
    assert not [one for one in caught if one.category is not mq.AccuracyWarning]


def test_no_weight_is_packed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was weighed is what is shipped: four representations in codes of each of three layers."""
    packed: list[Any] = []
    pack = PackedMatrix.pack.__func__

    def counting(kind: type[PackedMatrix], weight: Tensor, scheme: Any, *more: Any) -> Any:
        packed.append(scheme)
        return pack(kind, weight, scheme, *more)

    monkeypatch.setattr(PackedMatrix, "pack", classmethod(counting))
    quantize(target_bits_per_weight=5.5)
    assert len(packed) == 12
