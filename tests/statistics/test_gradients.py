"""Squared gradients of outputs: those of the Jacobian, summed over runs, and of rows."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monoquant.statistics.gradients import GradientProbe
from tests.statistics.gradient_cases import Chain, energy, inputs, probed, with_logits


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
