"""Awq: factors follow the inputs, lower the noise where some channels are large, and are the same every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import monoquant as mq
from monoquant.algorithms.awq import Awq
from monoquant.algorithms.base import Needs, WeightProblem
from monoquant.algorithms.clean import InputStatistics, input_scale, solve
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.numerics.affine import dequantize


def inputs_with_outliers(columns: int = 200, rows: int = 600) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator)
    x[:, ::17] *= 25
    return x


def weight(columns: int = 200) -> Tensor:
    return torch.randn(64, columns, generator=torch.Generator().manual_seed(1)) * 0.1


def known(x: Tensor) -> InputStatistics:
    return InputStatistics(len(x), x.square().mean(0), x.T @ x / len(x))


def noise(algorithm: object, matrix: Tensor, x: Tensor, factors: Tensor, scheme: mq.Scheme) -> float:
    codes = solve(algorithm, matrix * factors, scheme, known(x / factors)).codes  # type: ignore[arg-type]
    found = dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(matrix.shape[1])) / factors
    return float((x @ (found - matrix).T).square().sum())


@pytest.mark.parametrize("group_size", [32, 128, None])
@pytest.mark.parametrize("symmetric", [False, True])
def test_better_than_rounding_where_channels_stick_out(symmetric: bool, group_size: int | None) -> None:
    """Much less noise on other inputs, with either choice of codes; ragged groups included."""
    scheme, matrix, x = mq.Scheme(4, group_size, symmetric), weight(), inputs_with_outliers()
    fitted, other, ones = x[:400], x[400:], torch.ones(200)
    factors = input_scale(Awq(), matrix, scheme, known(fitted))
    assert factors is not None
    assert factors.shape == (200,)
    assert factors[::17].min() > factors[1::17].max()
    plain = noise(RoundToNearest(), matrix, other, ones, scheme)
    assert noise(RoundToNearest(), matrix, other, factors, scheme) < 0.6 * plain
    assert noise(Awq(codes=ClipSearch()), matrix, other, factors, scheme) < 0.6 * plain


def test_float64_weights_get_the_same_factors() -> None:
    """Weights keep their precision, factors are float32."""
    x, matrix = inputs_with_outliers(), weight()
    factors = input_scale(Awq(), matrix.double(), mq.Scheme(), known(x))
    assert factors is not None
    assert torch.equal(factors, input_scale(Awq(), matrix, mq.Scheme(), known(x)))


def test_no_factors_for_even_inputs() -> None:
    """Where all columns are alike there is nothing to gain, or nearly so."""
    x = torch.ones(64, 128)
    assert input_scale(Awq(), weight(128), mq.Scheme(), known(x)) is None


def test_equal_problems_have_equal_solutions() -> None:
    """Bit for bit."""
    x, scheme = inputs_with_outliers(), mq.Scheme()
    one, other = (input_scale(Awq(), weight(), scheme, known(x)) for _ in range(2))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_what_it_asks_for() -> None:
    """The diagonal, unless its codes need more; without statistics it has no factors."""
    assert Awq().needs is Awq(codes=Gptq()).needs is Needs.HESSIAN
    assert Awq(codes=ClipSearch()).needs is Needs.SQUARES
    assert Awq(codes=RoundToNearest()).needs is Needs.SQUARES
    assert Awq().input_scale(WeightProblem(weight(128), 128, mq.Scheme())) is None
    assert ClipSearch().input_scale(WeightProblem(weight(128), 128, mq.Scheme())) is None
    for bad in ("gptq", Awq(), None):
        with pytest.raises(mq.ConfigError, match="codes="):
            Awq(codes=bad)  # type: ignore[arg-type]


def test_float64_weights_have_the_same_factors() -> None:
    """Models in double precision have their weights in it, and statistics in float32."""
    x, scheme = inputs_with_outliers(), mq.Scheme()
    single, double = (input_scale(Awq(), matrix, scheme, known(x)) for matrix in (weight(), weight().double()))
    assert single is not None
    assert double is not None
    assert torch.equal(single, double)
