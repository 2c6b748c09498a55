"""BudgetPass with a function that judges models: what is tried, how often, and that trials harm nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from tests.passes.budgets import (
    DATA,
    FINE,
    MODELS,
    Judge,
    Net,
    Tied,
    answer,
    batches,
    bits_per_weight,
    chosen,
    quantize,
)

SHIPPED = [*((name, "round_to_nearest") for name in MODELS), *((name, "gptq") for name in ("linear", "attention"))]


@pytest.mark.parametrize(("name", "algorithm"), SHIPPED)
def test_the_model_that_was_accepted_is_the_one_that_is_shipped(name: str, algorithm: str) -> None:
    """Bit for bit the same answers, after packing, measuring and copying."""
    torch.manual_seed(0)
    build, data = MODELS[name]
    model = build()
    judge = Judge(model, data[0])
    result = quantize(model, data, algorithm=algorithm, evaluate=judge, tolerated_drop=1e-3)
    evaluations = result.report.tradeoff.evaluations
    place = [index for index, one in enumerate(evaluations) if one.accepted][-1] or len(evaluations) - 1
    assert torch.equal(judge.answers[place], answer(result.model, data[0]))
    assert not torch.equal(judge.answers[place], judge.answers[0])
    assert evaluations[place].bits_per_weight == result.report.tradeoff.bits_per_weight
    assert result.report.tradeoff.bits_per_weight == pytest.approx(bits_per_weight(result.model), rel=1e-12)


def test_tied_layers_on_trial_have_biases_of_their_own() -> None:
    """As the ones that are shipped."""
    model, data = Tied(bias=True), batches(64, 96)
    judge = Judge(model, data[0])
    result = quantize(model, data, algorithm="gptq", evaluate=judge, tolerated_drop=10)
    assert torch.equal(judge.answers[-1], answer(result.model, data[0]))


def zero_everything(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()


HARMS: dict[str, Callable[[nn.Module], Any]] = {
    "half": lambda model: model.half(),
    "double": lambda model: model.to(torch.float64),
    "meta": lambda model: model.to("meta"),
    "zeroed": zero_everything,
    "trained": lambda model: model.train().requires_grad_(True),
    "emptied": lambda model: [delattr(model, name) for name in list(model._modules)],
}


@pytest.fixture(scope="module")
def harmless() -> tuple[Judge, mq.QuantResult]:
    """What a function that only looks makes of Net."""
    judge = Judge(Net(), DATA[0])
    return judge, quantize(judge.original, evaluate=judge, tolerated_drop=1e-3)


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_done_to_a_model_on_trial_harms_no_other(harmless: tuple[Judge, mq.QuantResult], harm: str) -> None:
    """Neither the next one, nor the result, nor the model that was given."""
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (plain, expected), harmful = harmless, Judge(model, DATA[0], HARMS[harm])
    result = quantize(model, evaluate=harmful, tolerated_drop=1e-3)
    assert len(harmful.values) > 3
    assert harmful.values == plain.values
    assert torch.equal(answer(result.model, DATA[0]), answer(expected.model, DATA[0]))
    assert result.report == expected.report
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_float_model_is_given_as_it_is_in_eval_mode(unchanged: Any) -> None:
    """Flags, buffers and attributes that the function leaves behind are undone."""
    model = Net().train()
    model.b.eval()
    check = unchanged(model)
    seen: list[bool] = []

    def evaluate(one: nn.Module) -> float:
        seen.append(one.training)
        one.train()
        one.shift.zero_()
        one.remark = "mine"
        return 0.0

    quantize(model, evaluate=evaluate, tolerated_drop=0.0)
    check()
    assert not hasattr(model, "remark")
    assert seen == [False, False]


def test_an_evaluation_in_half_precision_leaves_the_model_as_it_was(unchanged: Any) -> None:
    """Judging in half precision is common; or it must be refused, not silently change what is quantized."""
    model = Net()
    check = unchanged(model)
    quantize(model, evaluate=lambda one: float(one.half().a.bias.dtype == torch.float16), tolerated_drop=0.0)
    assert model.a.weight.dtype == torch.float32
    check()


@pytest.mark.parametrize("most", [3, 4, 8, 20])
@pytest.mark.parametrize("drop", [0.0, 1e-4, 1e-2, 1.0])
def test_no_more_evaluations_than_allowed(most: int, drop: float) -> None:
    """The float model's included; what is chosen was accepted, or the finding says that nothing was."""
    judge = Judge(Net(), DATA[0])
    passes = [
        mq.SkipSelectionPass.from_options(),
        mq.CalibrationPass(DATA),
        mq.BudgetPass(evaluate=judge, tolerated_drop=drop, max_evaluations=most),
        mq.Int4PackPass(algorithm="round_to_nearest"),
        mq.Int8PackPass(),
        mq.HalfCastPass(),
    ]
    report = mq.Quantizer(passes).run(judge.original).report
    found = report.tradeoff.evaluations
    assert len(found) == len(judge.values) <= most
    assert [one.value for one in found] == judge.values
    assert (found[0].bits_per_weight, found[0].value, found[0].accepted) == (32.0, 0.0, True)
    assert all(one.accepted == (one.value >= -drop) for one in found)
    accepted = [one.bits_per_weight for one in found[1:] if one.accepted]
    failed = any(finding.code == "drop-not-met" for finding in report.findings)
    assert failed == (not accepted)
    assert report.tradeoff.bits_per_weight == (min(accepted) if accepted else 16)


def test_more_evaluations_find_a_cheaper_model() -> None:
    """Bisection: with each, less is between what is too cheap and what is good enough."""
    found = []
    for most in (3, 5, 8):
        judge = Judge(Net(), DATA[0])
        goal = mq.BudgetPass(evaluate=judge, tolerated_drop=1e-4, max_evaluations=most)
        pack = [mq.Int4PackPass(algorithm="round_to_nearest"), mq.Int8PackPass(), mq.HalfCastPass()]
        steps = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA), goal, *pack]
        found.append(mq.Quantizer(steps).run(judge.original).report.tradeoff)
    assert found[0].bits_per_weight == 16
    assert found[0].bits_per_weight > found[1].bits_per_weight >= found[2].bits_per_weight
    rejected = max(one.bits_per_weight for one in found[2].evaluations if not one.accepted)
    between = [p for p in found[2].curve if rejected + 1e-9 < p.bits_per_weight < found[2].bits_per_weight - 1e-9]
    assert not between


def test_a_function_that_is_always_content_gets_the_cheapest() -> None:
    """After two calls: the float model's, and that of the smallest representation."""
    calls = []
    result = quantize(evaluate=lambda model: calls.append(model) or 5, tolerated_drop=0)
    assert len(calls) == 2
    assert set(chosen(result).values()) == {FINE}
    assert result.report.tradeoff.bits_per_weight == result.report.tradeoff.curve[0].bits_per_weight


def never_content() -> Callable[[nn.Module], float]:
    values = itertools.count(0, -1)
    return lambda _: float(next(values))


def test_a_function_that_is_never_content_gets_the_best_and_a_critical_finding() -> None:
    """The report holds what was tried."""
    result = quantize(evaluate=never_content(), tolerated_drop=0.5)
    (found,) = [finding for finding in result.report.findings if finding.code == "drop-not-met"]
    assert found.severity is mq.Severity.CRITICAL
    assert found.message == "CRITICAL: no representation keeps the drop within 0.5."
    assert {scheme.target for scheme in chosen(result).values()} == {"float16"}


@pytest.mark.parametrize("content", [True, False])
def test_a_choice_of_one_is_evaluated_once(content: bool) -> None:
    """Where layers have one representation only, it is not tried again; a finding says if it fails."""
    calls: list[float] = []

    def evaluate(_model: nn.Module) -> float:
        calls.append(0.0 if content else -float(len(calls)))
        return calls[-1]

    goal = mq.BudgetPass(evaluate=evaluate, tolerated_drop=0.5, group_sizes=())
    steps = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA), goal, mq.Int4PackPass()]
    report = mq.Quantizer(steps).run(Net()).report
    assert len(report.tradeoff.curve) == 1
    assert [one.accepted for one in report.tradeoff.evaluations] == [True, content]
    assert len(calls) == 2
    assert [finding.code == "drop-not-met" for finding in report.findings].count(True) == (not content)


def test_the_gate_fails_a_build_whose_drop_is_not_met(unchanged: Any) -> None:
    """With accuracy_warning='error', and the model is left alone."""
    model = Net()
    check = unchanged(model)
    with pytest.raises(mq.AccuracyError, match=r"no representation keeps the drop within 0\.5"):
        quantize(model, evaluate=never_content(), tolerated_drop=0.5, accuracy_warning="error", inplace=True)
    check()


def test_evaluations_are_told_as_findings(harmless: tuple[Judge, mq.QuantResult]) -> None:
    """In order, with value, bits and verdict."""
    _, result = harmless
    told = [finding for finding in result.report.findings if finding.code == "evaluated"]
    assert {finding.severity for finding in told} == {mq.Severity.INFO}
    assert [finding.message for finding in told] == [
        f"Evaluation {number}: {one.value:.6g} at {one.bits_per_weight:.3f} bits per weight, "
        f"{'tolerated' if one.accepted else 'too low'}."
        for number, one in enumerate(result.report.tradeoff.evaluations)
    ]
    assert {one.accepted for one in result.report.tradeoff.evaluations} == {True, False}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "good", [1.0], torch.ones(2)])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_what_is_no_finite_number_is_refused(unchanged: Any, value: Any, call: int) -> None:
    """Of the float model or of any on trial; comparing with nan would accept or refuse by accident."""
    model, calls = Net().train(), itertools.count()
    check = unchanged(model)
    with pytest.raises(mq.InputError, match=r"evaluate\(model\) returned .*: return a finite number, higher is better"):
        quantize(model, evaluate=lambda _: value if (n := next(calls)) == call else -n, tolerated_drop=0)
    check()


GOOD = [1, 1.0, True, torch.tensor(1.0), torch.tensor([[1]])]


@pytest.mark.parametrize("value", GOOD)
def test_numbers_and_tensors_of_one_are_taken(value: Any) -> None:
    """As functions return them."""
    (first, second) = quantize(evaluate=lambda _: value, tolerated_drop=0).report.tradeoff.evaluations
    assert (first.value, second.value) == (1.0, 1.0)


def test_numbers_of_numpy_are_taken() -> None:
    """Metrics of other libraries return them; numpy.float64 is a float, numpy.float32 is not."""
    numpy = pytest.importorskip("numpy")
    assert quantize(evaluate=lambda _: numpy.float32(1), tolerated_drop=0).report.tradeoff.evaluations[0].value == 1.0


def test_all_models_are_judged_without_gradients() -> None:
    """As calibration runs them: float(loss) would warn, and activations fill memory."""
    seen = []
    quantize(evaluate=lambda _: seen.append(torch.is_grad_enabled()) or 1, tolerated_drop=0)
    assert seen == [False, False]


@pytest.mark.parametrize("call", [0, 1, 3])
@pytest.mark.parametrize("inplace", [False, True])
def test_an_exception_of_the_function_leaves_the_model_as_it_was(unchanged: Any, call: int, inplace: bool) -> None:
    """It is raised as it is, with a note on where; state, flags and hooks are those from before."""
    model, calls = Net().train(), itertools.count()
    model.a.eval()
    check = unchanged(model)

    def evaluate(_model: nn.Module) -> float:
        number = next(calls)
        if number == call:
            raise ZeroDivisionError("planted")
        return -float(number)

    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        quantize(model, evaluate=evaluate, tolerated_drop=0.5, inplace=inplace)
    check()
    assert any("BudgetPass.run" in note for note in caught.value.__notes__)


def test_models_on_trial_obey_rules_too() -> None:
    """Or what is judged would not be what is shipped."""
    judge = Judge(Net(), DATA[0])
    rules = [mq.NameRule("a", skip_to="int8"), mq.NameRule("c")]
    result = quantize(judge.original, rules=rules, evaluate=judge, tolerated_drop=10)
    assert torch.equal(judge.answers[-1], answer(result.model, DATA[0]))
    assert isinstance(result.model.a, mq.Int8Linear)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_models_on_trial_multiply_integers_too(activations: Any) -> None:
    """Their inputs are quantized as those of the result."""
    judge = Judge(Net(), DATA[0])
    result = quantize(judge.original, bits=8, activations=activations, evaluate=judge, tolerated_drop=10)
    assert torch.equal(judge.answers[-1], answer(result.model, DATA[0]))
    assert all(scheme.activations == activations for scheme in chosen(result).values())
