"""Biases that make up for the mean error of fitted codes, and weights and biases that are tied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from tests.fitting_cases import (
    FEATURES,
    UNWEIGHTED,
    algorithms,
    assert_rounded,
    each,
    fit,
    fitted_part,
    linear,
    rows,
)

KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[Tensor], Tensor]]] = {
    "Linear": (lambda: linear()[0], rows(300), lambda y: y),
    "Conv1d": (
        lambda: nn.Conv1d(16, 24, 3, padding=1, groups=2),
        rows(60).view(60, 16, 4) + 0.5,
        lambda y: y.mT.reshape(-1, 24),
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(16, 12, 2, stride=2),
        rows(60).view(60, 16, 2, 2) + 0.5,
        lambda y: y.flatten(2).mT.reshape(-1, 12),
    ),
}


@pytest.mark.parametrize("algorithm", [ClipSearch(), UNWEIGHTED], ids=["clip_search", "gptq"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_output_is_exact(kind: str, algorithm: WeightAlgorithm) -> None:
    """On what was fitted to, a corrected bias makes up for all that the weight's error does on average."""
    make, batch, channels_last = KINDS[kind]
    model = make().eval()
    result = fit(model, [batch], algorithm)
    bias = next(name for name, _ in model.named_parameters() if "bias" in name)
    assert not torch.equal(result.model.get_parameter(bias), model.get_parameter(bias))
    known = fitted_part(batch)
    with torch.no_grad():
        error = channels_last(result.model(known) - model(known)).double()
    deviation = error.std(0)
    assert float(deviation.min()) > 0
    assert bool((error.mean(0).abs() < 1e-3 * deviation).all())
    without = fit(model, [batch], algorithm, correct_bias=False).model
    assert torch.equal(without.get_parameter(bias), model.get_parameter(bias))
    with torch.no_grad():
        assert float(channels_last(without(known) - model(known)).mean(0).abs().mean()) > 1e-2 * float(deviation.mean())


def test_weighted_rows_leave_the_mean_nearly_exact() -> None:
    """Where rows count differently, so do they in the mean; it is closer than without a correction all the same."""
    model, batch = linear(), rows(300)
    known = fitted_part(batch)

    def shift(correct_bias: bool) -> float:
        with torch.no_grad():
            result = fit(model, [batch], Gptq(), correct_bias=correct_bias).model
            return float((result(known) - model(known)).double().mean(0).square().mean())

    assert shift(correct_bias=True) < 0.2 * shift(correct_bias=False)


def test_biases_of_recurrent_layers_and_attention() -> None:
    """Each matrix has the bias that is added to its product; an output projection has its own."""
    lstm = nn.LSTM(FEATURES, 32).eval()
    result = fit(lstm, [rows(240).view(40, 6, FEATURES)], UNWEIGHTED).model
    for name in ("bias_ih_l0", "bias_hh_l0"):
        assert not torch.equal(result.get_parameter(name), lstm.get_parameter(name))
    attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True).eval()
    batch = rows(320).view(40, 8, FEATURES)
    result = fit(attention, [(batch, batch, batch)], UNWEIGHTED).model
    for name in ("in_proj_bias", "out_proj.bias"):
        assert not torch.equal(result.get_parameter(name), attention.get_parameter(name))


@each
def test_a_shared_bias_is_left_alone(algorithm: WeightAlgorithm) -> None:
    """It belongs to several layers, whose errors differ."""
    model = nn.Sequential(linear()[0], nn.ReLU(), nn.Linear(48, 48))
    model[2].bias = model[0].bias
    before = model[0].bias.detach().clone()
    result = fit(model, [rows(300)], algorithm).model
    assert torch.equal(result[0].bias, before)
    assert result[0].bias is result[2].bias


def test_a_bias_that_shares_memory_stays_tied() -> None:
    """Two Parameters over one memory are one number each to whoever trains them."""
    model = nn.Sequential(linear()[0], nn.ReLU(), nn.Linear(48, 48))
    model[2].bias = nn.Parameter(model[0].bias.data)
    result = fit(model, [rows(300)], UNWEIGHTED).model
    assert result[0].bias.data_ptr() == result[2].bias.data_ptr()


def test_layers_without_bias_get_none() -> None:
    """There is nothing to correct, and nothing is added."""
    result = fit(linear(bias=False), [rows(300)]).model
    assert result[0].bias is None
    assert [name for name, _ in result.named_parameters()] == []


def test_rounding_by_choice_corrects_nothing() -> None:
    """Who asks for round_to_nearest gets the weights rounded, and nothing else changed."""
    model = linear()
    result = fit(model, [rows(300)], "round_to_nearest")
    assert torch.equal(result.model[0].bias, model[0].bias)
    assert_rounded(result, model)


class Tied(nn.Module):
    """Two Linears with one weight and a bias each, whose inputs differ."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(-3 * x.flip(1))


def tied() -> Tied:
    model = Tied().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.parametrize("algorithm", [Gptq(), UNWEIGHTED], ids=["gptq", "alike"])
def test_tied_weights_stay_tied(algorithm: WeightAlgorithm) -> None:
    """They have one set of codes, fitted to the inputs of both."""
    result = fit(tied(), [rows(300)], algorithm)
    assert result.model.first.packed_weight is result.model.second.packed_weight
    assert algorithms(result)["first"] == algorithm.name


def test_tied_layers_have_one_algorithm() -> None:
    """Each layer of the report tells what chose its codes."""
    assert algorithms(fit(tied(), [rows(300)], UNWEIGHTED)) == {"first": "gptq", "second": "gptq"}


def test_biases_of_tied_weights_do_no_harm() -> None:
    """A bias that belongs to one layer makes up for what happens in that layer, or stays as it is."""
    model, batch = tied(), rows(300)
    known = fitted_part(batch)
    results = [fit(model, [batch], UNWEIGHTED, correct_bias=flag).model for flag in (True, False)]
    with torch.no_grad():
        for index in (0, 1):
            corrected, plain = (
                (result(known)[index] - model(known)[index]).mean(0).square().mean() for result in results
            )
            assert float(corrected) <= float(plain) * 1.01


def test_a_forward_of_ones_own_may_use_its_bias_in_another_way() -> None:
    """The correction must fit what the module makes of its bias, or must not be made."""

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 10 * functional.linear(input, self.weight) + self.bias

    model = nn.Sequential(Scaled(FEATURES, 48)).eval()
    batch = rows(300)
    known = fitted_part(batch)
    corrected, plain = (fit(model, [batch], UNWEIGHTED, correct_bias=flag).model for flag in (True, False))
    with torch.no_grad():
        shift, before = (float((one(known) - model(known)).mean(0).square().mean()) for one in (corrected, plain))
    assert shift < 0.1 * before or torch.equal(corrected[0].bias, model[0].bias)
