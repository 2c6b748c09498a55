"""Squared gradients of models as they come: tuples, in-place functions, branches, answers of any kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from monoquant.statistics.gradients import GradientProbe, Sensitivity, first_float, logits_of
from tests.statistics.gradient_cases import Chain, energy, inputs, one, other, probed, whole, with_logits


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
