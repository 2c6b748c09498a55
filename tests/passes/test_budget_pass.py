"""BudgetPass, and quantize with a goal: what is promised of bytes, decibels and evaluated models is kept."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monoquant as mq
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import PackedWeight

FINE = mq.Scheme(4, 128)


class Net(nn.Module):
    """Three Linears of different size and weight; a buffer that the answer depends on."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a, self.b, self.c = nn.Linear(160, 96), nn.Linear(96, 160), nn.Linear(160, 32)
        self.register_buffer("shift", torch.full((32,), 0.5))
        with torch.no_grad():
            for scale, layer in ((1.5, self.a), (0.5, self.b), (0.7, self.c)):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale * 0.1)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))) + self.shift


def batches(*shape: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) + 0.2 for _ in range(count)]


DATA = batches(48, 160)


def quantize(model: nn.Module | None = None, data: Any = DATA, **options: Any) -> mq.QuantResult:
    """Quickly and quietly, if nothing else is said."""
    quick = {"accuracy_warning": "ignore", "plugins": False, "calibration_data": data}
    quick |= {} if "algorithm" in options or options.get("bits", 4) != 4 else {"quality": "fast"}
    return mq.quantize(model or Net(), **{**quick, **options})


def packed_weights(model: nn.Module) -> list[PackedWeight]:
    return [module for module in model.modules() if isinstance(module, PackedWeight)]


def bits_per_weight(model: nn.Module) -> float:
    """From the buffers of a model: all but those that say what the others mean."""
    found = packed_weights(model)
    buffers = [buffer for one in found for name, buffer in one.named_buffers() if name != "layout"]
    return (
        8
        * sum(buffer.numel() * buffer.element_size() for buffer in buffers)
        / sum(one.rows * one.columns for one in found)
    )


def estimated_noise(result: mq.QuantResult) -> float:
    return math.fsum(one.options[one.chosen].noise for one in result.report.tradeoff.layers)


def codes(result: mq.QuantResult) -> set[str]:
    return {finding.code for finding in result.report.findings}


def chosen(result: mq.QuantResult) -> dict[str, Any]:
    return {record.layer: record.scheme for record in result.report.layers if record.scheme is not None}


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


GOALS = [
    ({"target_bits_per_weight": 6.5}, "chosen for 6.5 bits per weight"),
    ({"target_sqnr_db": 30}, "chosen for 30 dB"),
    ({"evaluate": lambda model: -float("int4" in str(model)), "tolerated_drop": 0.25}, "chosen for a drop of at most"),
]


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


class Judge:
    """Judges models by how near their answers are to a float model's; remembers what it was given.

    Args:
        model: The float model.
        x: What models are asked.
        harm: Done to each model on trial when it has been judged.
    """

    def __init__(self, model: nn.Module, x: Any, harm: Callable[[nn.Module], Any] | None = None) -> None:
        self.x, self.harm = x, harm
        self.original, self.reference = model, answer(model, x)
        self.answers: list[Tensor] = []
        self.values: list[float] = []

    def __call__(self, model: nn.Module) -> float:
        found = answer(model, self.x)
        self.answers.append(found)
        noise = (found - self.reference).double().square().sum() / self.reference.double().square().sum()
        self.values.append(-float(noise))
        if self.harm is not None and model is not self.original:
            self.harm(model)
        return self.values[-1]


def answer(model: nn.Module, x: Any) -> Tensor:
    training = model.training
    with torch.no_grad():
        found: Tensor = model.eval()(x)
    model.train(training)
    return found


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.recurrent, self.head = kind(64, 48, batch_first=True), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0])


class Tied(nn.Module):
    """Two Linears with one weight."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first, self.second = nn.Linear(96, 96, bias=bias), nn.Linear(96, 96, bias=bias)
        self.last = nn.Linear(96, 32)
        self.second.weight = self.first.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


MODELS = {
    "linear": (Net, DATA),
    "lstm": (Recurrent, batches(24, 5, 64)),
    "gru": (lambda: Recurrent(nn.GRU), batches(24, 5, 64)),
    "attention": (Attention, batches(24, 5, 64)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(8, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3)),
        batches(12, 8, 7, 7),
    ),
    "tied": (Tied, batches(32, 96)),
}


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


def test_rules_win_over_the_budget() -> None:
    """What a rule keeps in float or sends to INT8 is neither weighed nor counted."""
    rules = [mq.NameRule("a", skip_to="int8"), mq.NameRule("c")]
    result = quantize(rules=rules, target_bits_per_weight=16)
    assert [one.layer for one in result.report.tradeoff.layers] == ["b"]
    records = {record.layer: record for record in result.report.layers}
    assert records["a"].scheme == mq.Int8PackPass().scheme
    assert "name matches 'a'" in records["a"].reason
    assert records["b"].scheme == mq.HalfScheme(torch.float16)
    assert records["c"].action is mq.Action.SKIP


def test_models_on_trial_obey_rules_too() -> None:
    """Or what is judged would not be what is shipped."""
    judge = Judge(Net(), DATA[0])
    rules = [mq.NameRule("a", skip_to="int8"), mq.NameRule("c")]
    result = quantize(judge.original, rules=rules, evaluate=judge, tolerated_drop=10)
    assert torch.equal(judge.answers[-1], answer(result.model, DATA[0]))
    assert isinstance(result.model.a, mq.Int8Linear)


@pytest.mark.parametrize("goal", [goal for goal, _ in GOALS], ids=[next(iter(goal)) for goal, _ in GOALS])
def test_a_budget_for_no_layer_is_refused_or_does_nothing(goal: dict[str, Any]) -> None:
    """Rules may send every layer elsewhere; then there is nothing to share out."""
    try:
        result = quantize(rules=[mq.NameRule("*", skip_to="int8")], **goal)
    except mq.MonoquantError:
        return
    assert set(chosen(result).values()) == {mq.Int8PackPass().scheme}


class Unreached(nn.Module):
    """Its second layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.idle = nn.Linear(96, 96), nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(x)


@pytest.mark.parametrize("goal", [{"target_bits_per_weight": 12.0}, {"target_sqnr_db": 60}])
def test_layers_that_no_data_reached_stay_at_the_smallest(goal: dict[str, Any]) -> None:
    """Nothing is known of what they would gain; a finding names them."""
    result = quantize(Unreached(), batches(32, 96), **goal)
    (found,) = [finding for finding in result.report.findings if finding.code == "not-weighed"]
    assert (found.layer, found.severity) == ("idle", mq.Severity.INFO)
    assert chosen(result)["idle"] == FINE
    assert chosen(result)["called"] == mq.HalfScheme(torch.float16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_without_gradients_is_ranked_by_layer(mode: Callable[[], Any]) -> None:
    """And says so; the budget is kept all the same."""
    model = Net()
    type_ = type("Dark", (Net,), {"forward": mode()(Net.forward)})
    model.__class__ = type_
    result = quantize(model, target_bits_per_weight=6.5)
    assert result.report.tradeoff.criterion == "layer"
    assert "ranked-by-layer" in codes(result)
    assert "ranked-by-layer" not in codes(quantize(target_bits_per_weight=6.5))
    assert bits_per_weight(result.model) <= 6.5


def test_logits_are_ranked_by_divergence() -> None:
    """Where the model names them."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Net()

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=self.body(x))

    tradeoff = quantize(Head(), target_bits_per_weight=6.5).report.tradeoff
    assert tradeoff.criterion == "kl"
    assert "KL of the model's logits, nats" in str(tradeoff)


@pytest.mark.parametrize("name", ["lstm", "gru", "attention", "convolution", "tied"])
@pytest.mark.parametrize("goal", [{"target_bits_per_weight": 6.9}, {"target_sqnr_db": 24}])
def test_other_kinds_of_layers_share_a_budget(name: str, goal: dict[str, Any]) -> None:
    """Several weights in a layer, weights of several layers: bits are those of the buffers."""
    torch.manual_seed(0)
    build, data = MODELS[name]
    result = quantize(build(), data, **goal)
    found = bits_per_weight(result.model)
    assert result.report.tradeoff.bits_per_weight == pytest.approx(found, rel=1e-12)
    assert found <= goal.get("target_bits_per_weight", 16)
    assert len({str(scheme) for scheme in chosen(result).values()}) > 1 or "target_sqnr_db" in goal


def test_tied_layers_get_one_representation() -> None:
    """And one packed weight."""
    for target in (4.5, 6.0, 9.0, 14.0):
        result = quantize(Tied(), batches(32, 96), target_bits_per_weight=target)
        assert chosen(result)["first"] == chosen(result)["second"]
        assert result.model.first.packed_weight is result.model.second.packed_weight
        assert bits_per_weight(result.model) <= target


class Language(nn.Module):
    """An embedding whose table is the head's weight; the head is named first, or last."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        embed, head = nn.Embedding(96, 64), nn.Linear(64, 96, bias=False)
        head.weight = embed.weight
        parts = {"embed": embed, "up": nn.Linear(64, 64), "out": head}
        for name in ("out", "up", "embed") if head_first else ("embed", "up", "out"):
            self.add_module(name, parts[name])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(self.embed(tokens))))


TOKENS = [torch.randint(0, 96, (16, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize(
    "activations",
    [None, "dynamic", "static"],
)
def test_a_goal_keeps_integer_inputs_where_they_were(activations: Any, head_first: bool) -> None:
    """An embedding cannot multiply integers; a head that is tied to it can, and does without a goal."""
    plain = quantize(Language(head_first), TOKENS, bits=8, activations=activations)
    result = quantize(Language(head_first), TOKENS, bits=8, activations=activations, target_bits_per_weight=9)
    assert chosen(result) == chosen(plain)


@pytest.mark.parametrize("activations", [None, "dynamic", "static"])
def test_int8_is_shared_out_between_eight_bits_and_sixteen(activations: Any) -> None:
    """Layers that stay INT8 multiply integers as they would without a goal."""
    result = quantize(bits=8, activations=activations, target_bits_per_weight=11)
    assert bits_per_weight(result.model) <= 11
    assert {scheme.target for scheme in chosen(result).values()} == {"int8", "float16"}
    for scheme in chosen(result).values():
        assert scheme.target == "float16" or scheme.activations == activations


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_models_on_trial_multiply_integers_too(activations: Any) -> None:
    """Their inputs are quantized as those of the result."""
    judge = Judge(Net(), DATA[0])
    result = quantize(judge.original, bits=8, activations=activations, evaluate=judge, tolerated_drop=10)
    assert torch.equal(judge.answers[-1], answer(result.model, DATA[0]))
    assert all(scheme.activations == activations for scheme in chosen(result).values())


def test_sixteen_bits_leave_nothing_to_share_out() -> None:
    """Sixteen suffice, less is refused."""
    assert {scheme.target for scheme in chosen(quantize(bits=16, target_bits_per_weight=16)).values()} == {"float16"}
    with pytest.raises(mq.InputError, match=r"smallest representation takes, which is 16\.000"):
        quantize(bits=16, target_bits_per_weight=8)


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


def pipeline(*between: mq.Pass, data: Any = DATA) -> mq.Quantizer:
    pack = [mq.Int4PackPass(algorithm="round_to_nearest"), mq.Int8PackPass(), mq.HalfCastPass()]
    return mq.Quantizer([mq.SkipSelectionPass.from_options(), mq.CalibrationPass(data), *between, *pack])


def test_a_measured_plan_is_what_the_run_does(unchanged: Any) -> None:
    """The plain one knows of no goal; neither touches the model."""
    model = Net().train()
    check = unchanged(model)
    quantizer = pipeline(mq.BudgetPass(target_bits_per_weight=6.5))
    plain, measured = quantizer.plan(model), quantizer.plan(model, measured=True)
    check()
    report = quantizer.run(model).report
    assert {one.scheme for one in plain} == {FINE}
    assert [(one.layer, one.scheme, one.reason, one.compute) for one in measured] == [
        (record.layer, record.scheme, record.reason, record.compute) for record in report.layers
    ]
    assert [one.scheme for one in measured] != [one.scheme for one in plain]


def test_weighing_without_a_goal_changes_nothing(unchanged: Any) -> None:
    """Neither the model nor the plan; the ranking is the one that a goal chooses from."""
    model = Net().train()
    check = unchanged(model)
    quantizer = pipeline(mq.BudgetPass())
    tradeoff = quantizer.weigh(model)
    check()
    assert [one.scheme for one in quantizer.plan(model, measured=True)] == [FINE] * 3
    assert tradeoff.bits_per_weight == tradeoff.curve[0].bits_per_weight
    goal = pipeline(mq.BudgetPass(target_bits_per_weight=6.5)).weigh(model)
    assert goal.curve == tradeoff.curve
    assert [one.options for one in goal.layers] == [one.options for one in tradeoff.layers]
    assert quantizer.run(model).report.tradeoff == tradeoff


def test_weighing_needs_a_pass_that_weighs() -> None:
    """The error says which."""
    with pytest.raises(mq.ConfigError, match=r"no pass of this pipeline weighs layers: add BudgetPass\(\)"):
        pipeline().weigh(Net())


def test_measured_is_a_flag() -> None:
    """Of two values."""
    with pytest.raises(mq.ConfigError, match="measured=1"):
        pipeline(mq.BudgetPass()).plan(Net(), measured=1)


def test_group_sizes_are_those_asked_for() -> None:
    """As far as they are smaller than the pass's own and than a row; the finest comes last."""
    model, data = nn.Sequential(nn.Linear(160, 96), nn.Linear(96, 48)), batches(32, 160)
    tradeoff = pipeline(mq.BudgetPass(group_sizes=[16, 100, 256, 48]), data=data).weigh(model)
    sizes = [[option.scheme.group_size for option in one.options if option.scheme.bits == 4] for one in tradeoff.layers]
    assert sizes == [[128, 100, 48, 16], [128, 48, 16]]
    alone = pipeline(mq.BudgetPass(group_sizes=()), data=data).weigh(model)
    assert [[option.scheme.bits for option in one.options] for one in alone.layers] == [[4, 8, 16]] * 2


def test_without_other_passes_groups_are_all_there_is() -> None:
    """What no pass packs to is no option."""
    steps = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA), mq.BudgetPass(), mq.Int4PackPass()]
    assert [one.scheme.bits for one in mq.Quantizer(steps).weigh(Net()).layers[0].options] == [4, 4, 4]


def test_a_budget_behind_the_packing_pass_is_refused() -> None:
    """When the pipeline is built: there is nothing to choose any more."""
    steps = [mq.SkipSelectionPass.from_options(), mq.CalibrationPass(DATA), mq.Int4PackPass(), mq.BudgetPass()]
    with pytest.raises(mq.ConfigError, match="BudgetPass"):
        mq.Quantizer(steps)


def test_a_budget_needs_a_calibration() -> None:
    """In the pipeline, before it."""
    with pytest.raises(mq.ConfigError, match="BudgetPass needs CalibrationPass"):
        mq.Quantizer([mq.SkipSelectionPass.from_options(), mq.BudgetPass(), mq.Int4PackPass()])


def judged(_model: nn.Module) -> float:
    return 0.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"target_bits_per_weight": 5, "target_sqnr_db": 30}, "are different goals: give one of them"),
    ({"target_bits_per_weight": 5, "evaluate": judged, "tolerated_drop": 0}, "are different goals"),
    ({"target_sqnr_db": 30, "evaluate": judged, "tolerated_drop": 0}, "are different goals"),
    ({"evaluate": judged}, "evaluate and tolerated_drop belong together: give both"),
    ({"tolerated_drop": 0.1}, "belong together"),
    ({"tolerated_drop": 0.1, "target_sqnr_db": 30}, "belong together"),
    ({"evaluate": "accuracy", "tolerated_drop": 0.1}, "evaluate='accuracy': give a function"),
    ({"evaluate": judged, "tolerated_drop": -0.1}, "tolerated_drop=-0.1: give the drop"),
    ({"evaluate": judged, "tolerated_drop": math.nan}, "tolerated_drop=nan"),
    ({"evaluate": judged, "tolerated_drop": math.inf}, "tolerated_drop=inf"),
    ({"evaluate": judged, "tolerated_drop": "0.1"}, "tolerated_drop='0.1'"),
    ({"evaluate": judged, "tolerated_drop": True}, "tolerated_drop=True"),
    *[
        ({name: value}, f"{name}={value!r}: give a number above 0")
        for name in ("target_bits_per_weight", "target_sqnr_db")
        for value in (0, -4.5, math.nan, math.inf, "5", True)
    ],
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_goals_are_refused_before_anything_runs(options: dict[str, Any], text: str) -> None:
    """By quantize and by the pass alike."""
    with pytest.raises(mq.ConfigError, match=text.replace("(", r"\(")):
        mq.BudgetPass(**options)
    with pytest.raises(mq.ConfigError, match=text):
        mq.quantize(Net(), calibration_data=DATA, plugins=False, **options)


@pytest.mark.parametrize("most", [2, 0, -1, 8.0, True, None])
def test_fewer_evaluations_than_a_search_needs_are_refused(most: Any) -> None:
    """The float model's, the smallest's, and one more."""
    with pytest.raises(mq.ConfigError, match=r"max_evaluations=.*: give a whole number >= 3"):
        mq.BudgetPass(max_evaluations=most)


@pytest.mark.parametrize("sizes", [[0], [-32], [32.0], [True], ["32"]])
def test_wrong_group_sizes_are_refused(sizes: Any) -> None:
    """As Int4PackPass refuses its own."""
    with pytest.raises(mq.ConfigError, match="group_size="):
        mq.BudgetPass(group_sizes=sizes)


@pytest.mark.parametrize("goal", [goal for goal, _ in GOALS], ids=[next(iter(goal)) for goal, _ in GOALS])
def test_a_goal_needs_calibration_data(goal: dict[str, Any]) -> None:
    """The error names it."""
    with pytest.raises(mq.ConfigError, match="give calibration_data"):
        mq.quantize(Net(), plugins=False, **goal)


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

    def counting(kind: type[PackedMatrix], weight: Tensor, scheme: Any, form: Any = None) -> Any:
        packed.append(scheme)
        return pack(kind, weight, scheme, form)

    monkeypatch.setattr(PackedMatrix, "pack", classmethod(counting))
    quantize(target_bits_per_weight=5.5)
    assert len(packed) == 12
