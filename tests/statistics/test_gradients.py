"""Gradients of random directions: against Jacobians, against real KL, and leaving nothing behind."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from monoquant.statistics.gradients import GradientProbe, Sensitivity, first_float, logits_of


class Chain(nn.Module):
    """Two Linears with something between and something around the answer."""

    def __init__(self, between: nn.Module | None = None, wrap: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a, self.between, self.b = nn.Linear(6, 5), between or nn.Identity(), nn.Linear(5, 4)
        self.wrap = wrap
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.b(self.between(self.a(x))))


def inputs(rows: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))


def probed(model: nn.Module, x: Tensor, *names: str, times: int = 1) -> GradientProbe:
    probe = GradientProbe({name: model.get_submodule(name) for name in names or ("a", "b")})
    for _ in range(times):
        probe.probe(lambda: model(x))
    return probe


def energy(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


def with_logits(y: Tensor) -> Any:
    return SimpleNamespace(loss=None, logits=y)


def test_squared_gradients_of_a_linear_model_are_those_of_its_matrix() -> None:
    """On average |B|^2 per row at A's output, whatever the inputs are, and one per element at the model's own."""
    model, rows = Chain(), 6000
    probe = probed(model, inputs(rows))
    assert probe.found["a"].gradient / rows == pytest.approx(energy(model.b.weight), rel=0.06)
    assert probe.found["b"].gradient / probe.found["b"].elements == pytest.approx(1.0, rel=0.04)


def test_squared_gradients_are_those_of_the_jacobian() -> None:
    """Of a model that is not linear: the sum over rows of the squared Jacobian from the layer's output on."""
    model, x = Chain(nn.Tanh()), inputs(40)
    rest = torch.func.vmap(torch.func.jacrev(lambda hidden: model.b(torch.tanh(hidden))))
    expected = energy(rest(model.a(x).detach()))
    times = 400
    assert probed(model, x, times=times).found["a"].gradient / times == pytest.approx(expected, rel=0.05)


def test_energies_and_counts_are_sums_over_all_runs() -> None:
    """Of the layer's outputs, and of the model's."""
    model, x, y = Chain(nn.Tanh()), inputs(7), inputs(9, seed=8)
    probe = GradientProbe({"a": model.a})
    for batch in (x, y):
        probe.probe(lambda batch=batch: model(batch))
    both = torch.cat([x, y])
    found = probe.found["a"]
    assert (found.elements, probe.rows, probe.is_kl) == (16 * 5, 16, False)
    assert found.energy == pytest.approx(energy(model.a(both)), rel=1e-6)
    assert probe.output_energy == pytest.approx(energy(model(both)), rel=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_gradients_of_logits_foretell_the_divergence(scale: float) -> None:
    """Small noise in a layer's output costs the KL that squared gradients say, within a fifth."""
    model, x = Chain(nn.Tanh(), with_logits), inputs(4000)
    with torch.no_grad():
        model.b.weight.mul_(scale)
    probe = probed(model, x, "a")
    deviation = 0.02
    foretold = probe.found["a"].gradient * deviation**2 / probe.output_energy
    with torch.no_grad():
        hidden = model.a(x)
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1)) * deviation
        log_p, log_q = (model.b(torch.tanh(one)).double().log_softmax(-1) for one in (hidden, hidden + noise))
        real = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    assert (probe.is_kl, probe.output_energy, probe.rows) == (True, 8000.0, 4000)
    assert foretold == pytest.approx(real, rel=0.2)


def test_the_same_model_and_data_give_the_same_numbers() -> None:
    """Whatever the global generators are at."""
    model, x = Chain(nn.Tanh()), inputs(5)
    first = probed(model, x, times=3).found
    torch.manual_seed(99)
    assert probed(model, x, times=3).found == first


def test_further_runs_draw_further_directions() -> None:
    """Or many runs would tell no more than one."""
    model, x = Chain(), inputs(1)
    assert probed(model, x, times=2).found["a"].gradient != 2 * probed(model, x).found["a"].gradient


def test_squares_of_rows_are_those_of_the_last_run() -> None:
    """One number per vector of the layer's output, in order, which add up to what the run found."""
    model, x, y = Chain(nn.Tanh()), inputs(6), inputs(4, seed=8)
    probe = GradientProbe({"a": model.a})
    probe.probe(lambda: model(x))
    first = probe.found["a"].gradient
    [squares] = probe.row_squares["a"]
    assert squares.shape == (6,)
    assert energy(squares.sqrt()) == pytest.approx(first, rel=1e-6)
    probe.probe(lambda: model(y))
    [squares] = probe.row_squares["a"]
    assert squares.shape == (4,)
    assert float(squares.sum()) == pytest.approx(probe.found["a"].gradient - first, rel=1e-5)


def test_squares_of_rows_are_told_call_by_call() -> None:
    """In the order of the calls, each in the shape of its own output."""
    shared = nn.Linear(6, 6)

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = shared(x)
            return 3 * shared(first[:2]).sum() + 0 * first.sum()

    x = inputs(8).reshape(4, 2, 6)
    probe = GradientProbe({"shared": shared})
    probe.probe(lambda: Twice()(x))
    first, second = probe.row_squares["shared"]
    assert (first.shape, second.shape) == ((4, 2), (2, 2))
    assert float(first[2:].sum()) == 0
    assert bool((first[:2] > 0).all())
    assert float(second.max()) == pytest.approx(float(second.min()))


def test_an_output_of_one_number_has_no_rows() -> None:
    """What it says of the module is all there is."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    model = nn.Sequential(nn.Linear(6, 5), Sum())
    probe = probed(model, inputs(4), "0", "1")
    assert set(probe.found) == {"0", "1"}
    assert set(probe.row_squares) == {"0"}


@pytest.mark.parametrize("fails", [False, True])
def test_outputs_are_let_go_after_a_run(fails: bool) -> None:
    """Whether it failed or not: they would keep all that the model has computed in memory."""
    model, x = Chain(nn.Tanh()), inputs(4)
    seen: list[weakref.ref[Tensor]] = []
    model.a.register_forward_hook(lambda _module, _args, output: seen.append(weakref.ref(output)))
    probe = GradientProbe({"a": model.a})

    def run() -> Any:
        answer = model(x)
        return 1 / 0 if fails else answer

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        probe.probe(run)
    gc.collect()
    assert [one() for one in seen] == [None]


@pytest.mark.parametrize("wrap", [lambda y: y, with_logits], ids=["plain", "logits"])
def test_rows_that_move_nothing_weigh_nothing(wrap: Callable[[Tensor], Any]) -> None:
    """Vectors that a saturated function stops have no gradient, and the others have theirs."""
    model, x = Chain(nn.ReLU(), wrap), inputs(6)
    with torch.no_grad():
        model.a.bias.fill_(0)
        x[2] = 0
        model.a.bias.sub_(1e-3)
    [squares] = probed(model, x, "a").row_squares["a"]
    assert float(squares[2]) == 0
    assert int((squares > 0).sum()) > 2


@pytest.mark.parametrize("wrap", [lambda y: y, with_logits], ids=["plain", "logits"])
def test_padding_of_the_answer_has_no_say(wrap: Callable[[Tensor], Any]) -> None:
    """Positions that hold no data are in no row, no energy, and get no gradient."""
    model = Chain(nn.Tanh(), wrap)
    x = inputs(12).reshape(3, 4, 6)
    counted = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    probe, plain = GradientProbe({"a": model.a}), GradientProbe({"a": model.a})
    probe.probe(lambda: model(x), counted)
    plain.probe(lambda: model(x[counted]))
    [squares], [alone] = probe.row_squares["a"], plain.row_squares["a"]
    assert squares.shape == (3, 4)
    assert probe.rows == plain.rows == 7
    assert probe.output_energy == pytest.approx(plain.output_energy, rel=1e-5)
    assert probe.found["a"].gradient == pytest.approx(plain.found["a"].gradient, rel=1e-5)
    assert bool((squares[~counted] == 0).all())
    torch.testing.assert_close(squares[counted], alone, rtol=1e-4, atol=1e-6)


def test_a_mask_of_other_positions_than_the_answers_is_not_applied() -> None:
    """A sentence's one vector counts whatever tokens are padding."""
    model, x = Chain(wrap=lambda y: y.mean(1)), inputs(12).reshape(3, 4, 6)
    probe = GradientProbe({"a": model.a})
    probe.probe(lambda: model(x), torch.zeros(3, 4).bool())
    assert probe.rows == 3
    assert probe.found["a"].gradient > 0


class InTuple(nn.Module):
    """Returns what its module does along with other things."""

    def __init__(self, inner: nn.Module, kind: type) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Any:
        return self.kind([torch.arange(3), [self.inner(x), None], "state"])


class FromTuple(nn.Module):
    """Takes it out again."""

    def forward(self, answer: Any) -> Tensor:
        return answer[1][0]


@pytest.mark.parametrize("kind", [tuple, list])
def test_outputs_in_tuples_are_followed(kind: type) -> None:
    """The first floating-point tensor, however deep; what comes back to the model is of the same kind."""
    plain = Chain(nn.Tanh())
    model = copy.deepcopy(plain)
    model.a, model.between = InTuple(model.a, kind), nn.Sequential(FromTuple(), nn.Tanh())
    assert probed(model, inputs(8)).found == probed(plain, inputs(8)).found


def test_the_first_of_several_outputs_is_meant() -> None:
    """Of a recurrent layer the outputs, not the state; a hand-made gradient agrees."""
    model = nn.Sequential(nn.LSTM(6, 5), FirstOf(), nn.Linear(5, 1, bias=False))
    x = torch.randn(7, 2, 6, generator=torch.Generator().manual_seed(2))
    times = 400
    found = probed(model, x, "0", times=times).found["0"]
    assert found.elements == times * 7 * 2 * 5
    assert found.gradient / times == pytest.approx(14 * energy(model[2].weight), rel=0.1)


class FirstOf(nn.Module):
    def forward(self, answer: Any) -> Tensor:
        return answer[0]


def test_an_in_place_function_behind_a_layer_changes_nothing() -> None:
    """Energies are those of the layer's own output, and gradients are those at it."""
    model, x = Chain(nn.ReLU(inplace=True)), inputs(9)
    assert probed(model, x).found == probed(Chain(nn.ReLU()), x).found
    assert probed(model, x).found["a"].energy == pytest.approx(energy(model.a(x)))


def test_frozen_parameters_are_no_obstacle() -> None:
    """Outputs matter where no weight can be trained."""
    model, x = Chain(nn.Tanh()), inputs(6)
    expected = probed(model, x).found
    model.requires_grad_(False)
    assert probed(model, x).found == expected
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    """Its noise enters the output at both places."""
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    found = probed(model, inputs(3), "0").found["0"]
    x = inputs(3)
    first = shared(x)
    assert found.elements == 2 * 3 * 6
    assert found.energy == pytest.approx(energy(first) + energy(shared(torch.tanh(first))))


class Branches(nn.Module):
    """Modules whose outputs do not move the answer, or are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.detached, self.unused, self.never = (nn.Linear(6, 6) for _ in range(4))
        self.indices = Indices()

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        self.indices(x)
        return self.used(x) + self.detached(x).detach()


class Indices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def test_modules_without_gradients_are_missing() -> None:
    """Rather than there with a zero, which would say that they do not matter."""
    model = Branches()
    names = ("used", "detached", "unused", "never", "indices")
    assert list(probed(model, inputs(3), *names).found) == ["used"]


def test_nothing_stays_behind() -> None:
    """No gradients, no hooks, no other random numbers, no other mode; not even after a failure."""
    model = Chain(nn.Dropout(0.5)).train()
    x = inputs(4)
    state = torch.get_rng_state()
    with torch.no_grad():
        probe = GradientProbe(dict(model.eval().named_children()))
        probe.probe(lambda: model(x))

        def broken() -> Any:
            model(x)
            raise RuntimeError("planted")

        with pytest.raises(RuntimeError, match="planted"):
            probe.probe(broken)
        assert not torch.is_grad_enabled()
    assert probe.found
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.a(x).grad_fn is not None


def test_a_run_that_failed_is_not_counted_in_the_next() -> None:
    """What was recorded before the failure belongs to no answer."""
    model, x = Chain(nn.Tanh()), inputs(4)
    probe = GradientProbe({"a": model.a})

    def broken() -> Any:
        model(x)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        probe.probe(broken)
    probe.probe(lambda: model(x))
    assert probe.found == probed(model, x, "a").found


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("wrap", [lambda y: y, with_logits], ids=["plain", "logits"])
def test_models_without_gradients_are_told_by_silence(mode: Callable[[], Any], wrap: Callable[[Tensor], Any]) -> None:
    """A forward under no_grad or inference_mode is no error, and finds nothing."""
    model, x = Chain(nn.ReLU(inplace=True), wrap), inputs(4)
    probe = GradientProbe({"a": model.a, "b": model.b})
    probe.probe(lambda: mode()(model)(x))
    assert probe.found == {}


@pytest.mark.parametrize(
    "answer", [None, "text", torch.arange(3), {"ids": torch.arange(3)}, SimpleNamespace(x=torch.ones(2))], ids=str
)
def test_an_answer_without_numbers_finds_nothing(answer: Any) -> None:
    """As it does where the model's answer is an object that nobody knows."""
    model = Chain()
    probe = GradientProbe({"a": model.a})
    probe.probe(lambda: (model(inputs(2)), answer)[1])
    assert (probe.found, probe.output_energy, probe.rows) == ({}, 0.0, 0)


def test_a_scalar_answer_has_gradients_too() -> None:
    """A loss, say; it holds no rows."""
    model, x = Chain(wrap=lambda y: y.sum()), inputs(3)
    probe = probed(model, x, "b")
    assert probe.rows == 0
    assert probe.found["b"].gradient > 0


@attrs.frozen
class Answer:
    logits: Any = None


LOGITS = [
    (Answer(torch.zeros(2, 3)), True),
    (SimpleNamespace(logits=torch.zeros(2, 5, 3)), True),
    (Answer(torch.zeros(3, dtype=torch.float16)), True),
    (Answer(None), False),
    (Answer("text"), False),
    (Answer(torch.zeros(2, 3, dtype=torch.int64)), False),
    (Answer(torch.zeros(())), False),
    (Answer(torch.zeros(4, 1)), False),
    (torch.zeros(2, 3), False),
    ({"logits": torch.zeros(2, 3)}, False),
    ((torch.zeros(2, 3),), False),
    (None, False),
]


@pytest.mark.parametrize(("answer", "has"), LOGITS)
def test_logits_are_an_attribute_with_at_least_two_classes(answer: Any, has: bool) -> None:
    """Anything else is compared as vectors."""
    found = logits_of(answer)
    assert (found is not None) == has
    if has:
        assert found is answer.logits


one, other, whole = torch.ones(2), torch.zeros(3), torch.arange(2)
FIRST = [
    (one, one),
    (whole, None),
    ((whole, one, other), one),
    ([None, {"mask": whole, "y": other}, one], other),
    ({"ids": whole, "loss": one}, one),
    (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), None),
    ("text", None),
    (None, None),
    ((), None),
]


@pytest.mark.parametrize(("answer", "expected"), FIRST)
def test_the_first_float_is_searched_in_order(answer: Any, expected: Tensor | None) -> None:
    """Tuples, lists and mappings are looked into, integers are not meant."""
    assert first_float(answer) is expected


def test_a_sensitivity_begins_with_nothing() -> None:
    """Sums."""
    assert Sensitivity() == Sensitivity(0.0, 0.0, 0)


def test_classes_are_drawn_by_their_chances() -> None:
    """As often as the model says, never one without a chance; rows are drawn apart."""
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]).repeat(4000, 1)
    drawn = GradientProbe({})._drawn(chances).view(-1, 2)
    shares = torch.bincount(drawn[:, 0], minlength=6) / 4000
    assert torch.allclose(shares, chances[0], atol=0.03)
    assert bool((shares[chances[0] == 0] == 0).all())
    assert bool((drawn[:, 1] == 2).all())


def test_logits_that_are_no_numbers_are_refused() -> None:
    """A direction drawn from them would mean nothing."""
    model = nn.Linear(3, 4)
    probe = GradientProbe({"": model})
    with pytest.raises(ValueError, match="NaN"):
        probe.probe(lambda: with_logits(model(torch.full((2, 3), float("nan")))))
