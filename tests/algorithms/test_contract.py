"""Every algorithm: whatever the matrix and its inputs are, its codes are ones that a packed matrix can hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Generator, Tensor

import monoquant as mq
from monoquant.algorithms.base import Solution, WeightAlgorithm
from monoquant.algorithms.choice import ALGORITHMS
from monoquant.algorithms.clean import InputStatistics, solve
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics.affine import dequantize
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.testing.strategies import input_statistics, schemes, weights

each = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: one.name)


def problems() -> SearchStrategy[tuple[Tensor, mq.Scheme, InputStatistics | None]]:
    """A matrix, a scheme, and what is known of inputs, if anything."""
    return weights(max_rows=5, max_columns=140).flatmap(
        lambda matrix: st.tuples(st.just(matrix), schemes(), st.none() | input_statistics(matrix.shape[1])),
    )


def gaussian(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=Generator().manual_seed(seed))


def values(solution: Solution, scheme: mq.Scheme) -> Tensor:
    """What codes stand for, in float64."""
    codes = solution.codes
    return dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(codes.codes.shape[1])).double()


@each
@settings(max_examples=150)
@given(problem=problems())
def test_codes_can_be_packed(
    algorithm: WeightAlgorithm, problem: tuple[Tensor, mq.Scheme, InputStatistics | None]
) -> None:
    """Right shapes and dtypes, codes of the scheme's bits, finite scales; and packing keeps what they stand for."""
    matrix, scheme, inputs = problem
    solution = solve(algorithm, matrix, scheme, inputs)
    codes, scale, zero_point = solution.codes.codes, solution.codes.scale, solution.codes.zero_point
    rows, columns = matrix.shape
    groups = (rows, math.ceil(columns / scheme.width(columns)))
    assert (codes.shape, scale.shape, zero_point.shape) == (matrix.shape, groups, groups)
    assert (codes.dtype, scale.dtype, zero_point.dtype) == (torch.uint8, scheme.scale_dtype, torch.uint8)
    assert max(int(codes.max()), int(zero_point.max())) <= 2**scheme.bits - 1
    assert bool((torch.isfinite(scale) & (scale != 0)).all())
    assert not scheme.symmetric or bool((zero_point == 2 ** (scheme.bits - 1)).all())
    assert scheme.symmetric or bool((scale > 0).all())
    form = MatrixForm.rows_first(matrix.shape)
    packed, intended = PackedMatrix.from_codes(solution.codes, scheme, form, matrix.dtype)
    assert intended.holds(packed)
    assert torch.equal(packed.dequantize(), values(solution, scheme).float().to(matrix.dtype))
    assert bool(torch.isfinite(packed.dequantize()).all())


@each
@settings(max_examples=60)
@given(problem=problems())
def test_equal_problems_have_equal_solutions(
    algorithm: WeightAlgorithm, problem: tuple[Tensor, mq.Scheme, InputStatistics | None]
) -> None:
    """Nothing is random, nothing is remembered, and nothing that was given is written to."""
    matrix, scheme, inputs = problem
    tensors = [matrix] if inputs is None else [matrix, inputs.importance, inputs.hessian]
    given = [tensor.clone() for tensor in tensors]
    one, other = (solve(algorithm, matrix, scheme, inputs) for _ in range(2))
    assert all(torch.equal(tensor, before) for tensor, before in zip(tensors, given, strict=True))
    assert torch.equal(one.codes.codes, other.codes.codes)
    assert torch.equal(one.codes.scale, other.codes.scale)
    assert torch.equal(one.codes.zero_point, other.codes.zero_point)
    assert one.fallback == other.fallback


@each
@settings(max_examples=40)
@given(data=st.data(), columns=st.integers(1, 140), symmetric=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_rows_have_codes_of_their_own(
    algorithm: WeightAlgorithm, data: Any, columns: int, symmetric: bool, seed: int
) -> None:
    """Multiplying a row by a power of two changes its scales and no code, here or in any other row."""
    scheme = mq.Scheme(group_size=32, symmetric=symmetric, scale_dtype=torch.float32)
    inputs = data.draw(st.none() | input_statistics(columns))
    matrix = 0.02 * gaussian(seed, 8, columns)
    factors = 2.0 ** torch.arange(-3, 5).unsqueeze(1)
    one, other = (solve(algorithm, each_row, scheme, inputs).codes for each_row in (matrix, matrix * factors))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.zero_point, other.zero_point)
    assert torch.equal(one.scale * factors, other.scale)


@each
@settings(max_examples=40)
@given(inputs=st.none() | input_statistics(96), symmetric=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_codes_stand_for_the_weights(
    algorithm: WeightAlgorithm, inputs: InputStatistics | None, symmetric: bool, seed: int
) -> None:
    """The output of fitted inputs keeps 10 dB with 4 bits and 30 dB with 8, also where one column decides.

    Half a step of 8 bits is about 1 % of a Gaussian weight. No ratio of the two holds: where one column decides, 4 bits
    may happen to have a code next to it.
    """
    matrix = gaussian(seed, 16, 96).double()
    hessian = torch.eye(96).double() if inputs is None else inputs.hessian.double()

    def noise(bits: int) -> float:
        scheme = mq.Scheme(bits, 32, symmetric, torch.float32)
        error = values(solve(algorithm, matrix, scheme, inputs), scheme) - matrix
        return float(((error @ hessian) * error).sum())

    signal = float(((matrix @ hessian) * matrix).sum())
    assert noise(4) < signal / 10
    assert noise(8) < signal / 1000


@each
def test_without_statistics_every_algorithm_still_works(algorithm: WeightAlgorithm) -> None:
    """Where nothing is known of the inputs, codes are those for inputs without any preference, or rounded."""
    matrix = gaussian(0, 8, 64)
    error = values(solve(algorithm, matrix, mq.Scheme(group_size=32)), mq.Scheme(group_size=32)) - matrix
    assert float(error.square().mean()) < 0.01
