"""The algorithm against the paper, written down a second time, and against round_to_nearest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import monoquant as mq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monoquant.testing.strategies import schemes, weights
from torch import Generator, Tensor
from torch.nn import functional

from monoquant_hqq import Hqq

NORM, BETA, GROWTH, ITERATIONS = 0.7, 10.0, 1.01, 20


def shrink(error: float, beta: float) -> float:
    """The paper's generalized shrinkage operator."""
    return 0.0 if error == 0 else math.copysign(max(abs(error) - abs(error) ** (NORM - 1) / beta, 0.0), error)


def code(weight: float, scale: float, zero: float) -> int:
    return min(max(round(weight / scale + zero), 0), 15)


def beta_of(scale: float) -> float:
    """In the paper's units: for errors of weights, not of weights over the scale."""
    return BETA / abs(scale) ** (2 - NORM)


def published(group: list[float], scale: float, zero: float) -> float:
    """The paper's solver of one group: a zero point that is any float, for a scale that stays."""
    beta = beta_of(scale)
    for _ in range(ITERATIONS):
        codes = [code(weight, scale, zero) for weight in group]
        sparse = [shrink(weight - (q - zero) * scale, beta) for weight, q in zip(group, codes, strict=True)]
        rest = [q - (weight - e) / scale for weight, q, e in zip(group, codes, sparse, strict=True)]
        zero, beta = sum(rest) / len(rest), beta * GROWTH
    return zero


def reference(group: list[float], scale: float, zero: int) -> Iterator[float]:
    """The same with the zero point held: the scales that least squares find."""
    beta = beta_of(scale)
    for _ in range(ITERATIONS):
        signed = [code(weight, scale, zero) - zero for weight in group]
        sparse = [shrink(weight - q * scale, beta) for weight, q in zip(group, signed, strict=True)]
        above = sum(q * (weight - e) for weight, q, e in zip(group, signed, sparse, strict=True))
        scale, beta = above / sum(q * q for q in signed), beta * GROWTH
        yield scale


def cost(group: list[float], scale: float, zero: float) -> float:
    return sum(abs(weight - (code(weight, scale, zero) - zero) * scale) ** NORM for weight in group)


def stored(scale: float) -> float:
    return float(torch.tensor(scale, dtype=torch.float64).float())


def heavy_tails(rows: int, columns: int, seed: int) -> Tensor:
    """Student's t with 2 degrees of freedom, in float64."""
    normal = torch.randn(3, rows, columns, generator=Generator().manual_seed(seed), dtype=torch.float64)
    return 0.02 * normal[0] / normal[1:].square().mean(0).sqrt()


def padded(matrix: Tensor, scheme: mq.Scheme) -> mq.WeightProblem:
    """The problem that monoquant makes of a matrix."""
    width = scheme.width(matrix.shape[1])
    weight = matrix if matrix.dtype == torch.float64 else matrix.float()
    return mq.WeightProblem(functional.pad(weight, (0, -matrix.shape[1] % width)), width, scheme)


def costs(problem: mq.WeightProblem, codes: mq.GroupCodes) -> Tensor:
    """The lp norm of each group's error, to the power of p."""
    groups = problem.weight.double().reshape(-1, problem.width)
    signed = codes.codes.reshape(-1, problem.width).double() - codes.zero_point.reshape(-1, 1)
    return (groups - signed * codes.scale.reshape(-1, 1).double()).abs().pow(NORM).sum(-1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [16, 48])
def test_solutions_are_those_of_the_reference(symmetric: bool, width: int) -> None:
    """Scale by scale as the half-quadratic solver written for one group, in Python and in the paper's units, has it."""
    problem = padded(heavy_tails(12, 96, seed=width), mq.Scheme(4, width, symmetric, torch.float32))
    start, found = mq.RoundToNearest().solve(problem).codes, Hqq().solve(problem).codes
    groups = problem.weight.reshape(-1, width).tolist()
    improved = 0
    for index, group in enumerate(groups):
        scale, zero = float(start.scale.view(-1)[index]), int(start.zero_point.view(-1)[index])
        offered = [scale, *map(stored, reference(group, scale, zero))]
        best = min(offered, key=lambda one: cost(group, one, zero))
        assert float(found.scale.view(-1)[index]) == pytest.approx(best, rel=1e-6)
        assert found.codes.view(-1, width)[index].tolist() == [code(weight, best, zero) for weight in group]
        improved += best != scale
    assert improved > len(groups) * 0.25


def problems() -> st.SearchStrategy[mq.WeightProblem]:
    """Matrices of all kinds, dead, constant and ragged groups among them, for schemes of 4 and 8 bits."""
    return st.builds(padded, weights(max_rows=5, max_columns=140), schemes())


@settings(deadline=None, max_examples=150)
@given(problem=problems(), settings_=st.sampled_from((Hqq(), Hqq(beta=0.1), Hqq(beta=1e4, growth=2, iterations=3))))
def test_no_group_gets_worse(problem: mq.WeightProblem, settings_: Hqq) -> None:
    """By the norm that is made small, each group is at least as good as rounded to nearest, whatever the settings."""
    found, nearest = settings_.solve(problem).codes, mq.RoundToNearest().solve(problem).codes
    assert bool((costs(problem, found) <= costs(problem, nearest) * (1 + 1e-9)).all())


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_codes_can_be_packed(problem: mq.WeightProblem) -> None:
    """Codes of the scheme's bits, whole zero points, scales that can be stored; and the same ones each time."""
    weight = problem.weight.clone()
    found, again = Hqq().solve(problem).codes, Hqq().solve(problem).codes
    assert (found.codes.dtype, found.zero_point.dtype) == (torch.uint8, torch.uint8)
    assert found.scale.dtype == problem.scheme.scale_dtype
    assert max(int(found.codes.max()), int(found.zero_point.max())) <= problem.scheme.max_code
    assert bool((torch.isfinite(found.scale) & (found.scale != 0)).all())
    assert not problem.scheme.symmetric or bool((found.zero_point == problem.scheme.middle_code).all())
    assert all(map(torch.equal, attrs.astuple(found, recurse=False), attrs.astuple(again, recurse=False)))
    assert torch.equal(problem.weight, weight)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 40), shift=st.sampled_from((0.0, 0.03)))
def test_a_rounded_zero_point_would_gain_nothing(seed: int, width: int, shift: float) -> None:
    """Why the zero point stays: the paper's, rounded and with codes chosen again, is never better in any group."""
    problem = padded(heavy_tails(2, width, seed) + shift, mq.Scheme(4, width, scale_dtype=torch.float32))
    nearest = mq.RoundToNearest().solve(problem).codes
    for group, scale, zero in zip(
        problem.weight.tolist(), nearest.scale.view(-1).tolist(), nearest.zero_point.view(-1).tolist(), strict=True
    ):
        rounded = min(max(round(published(group, scale, zero)), 0), 15)
        assert cost(group, scale, rounded) >= cost(group, scale, zero) * (1 - 1e-9)


def test_a_float_zero_point_would_gain() -> None:
    """The reference is the paper's solver indeed: with zero points as they come out, it does lower the norm."""
    problem = padded(heavy_tails(64, 32, seed=0), mq.Scheme(4, 32, scale_dtype=torch.float32))
    nearest = mq.RoundToNearest().solve(problem).codes
    before = after = 0.0
    for group, scale, zero in zip(
        problem.weight.tolist(), nearest.scale.view(-1).tolist(), nearest.zero_point.view(-1).tolist(), strict=True
    ):
        before += cost(group, scale, zero)
        after += cost(group, scale, published(group, scale, zero))
    assert after < 0.95 * before


@pytest.mark.parametrize("symmetric", [False, True])
def test_heavy_tails_gain(symmetric: bool) -> None:
    """Over groups of 128 the norm falls by more than 5 %, and most of them gain."""
    problem = padded(heavy_tails(32, 1024, seed=0), mq.Scheme(symmetric=symmetric))
    before, after = (costs(problem, one.solve(problem).codes) for one in (mq.RoundToNearest(), Hqq()))
    assert float(after.sum()) < 0.95 * float(before.sum())
    assert float((after < before).double().mean()) > 0.8


@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_of_another_size_have_the_same_codes(symmetric: bool) -> None:
    """Rows are solved alone, and beta means the same for small weights as for large ones."""
    matrix, scheme = heavy_tails(8, 80, seed=1).float(), mq.Scheme(4, 32, symmetric, torch.float32)
    factors = 2.0 ** torch.arange(-12, 4, 2).unsqueeze(1)
    one, other = (Hqq().solve(padded(each, scheme)).codes for each in (matrix, matrix * factors))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale * factors, other.scale)


def test_chunks_change_nothing() -> None:
    """A matrix that is worked on in several parts has the solution of its parts."""
    matrix, scheme = heavy_tails(40, 8192, seed=2).float(), mq.Scheme()
    whole = Hqq().solve(padded(matrix, scheme)).codes
    row = Hqq().solve(padded(matrix[37:38], scheme)).codes
    assert torch.equal(whole.codes[37:38], row.codes)
    assert torch.equal(whole.scale[37:38], row.scale)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("norm", value) for value in (0, 1.5, "0.7")),
        *(("beta", value) for value in (0, math.inf, True, None)),
        *(("growth", value) for value in (0.9, math.nan, 3)),
        *(("iterations", value) for value in (0, 2.0, True)),
    ],
)
def test_senseless_settings_are_refused(option: str, value: Any) -> None:
    """Each by its name, with what would be allowed."""
    with pytest.raises(mq.ConfigError, match=f"^{option}=.*: give a"):
        Hqq(**{option: value})


def test_algorithms_are_values() -> None:
    """Equal settings are equal algorithms, and other settings are others."""
    assert Hqq() == Hqq(NORM, BETA, GROWTH, ITERATIONS)
    assert len({Hqq(), Hqq(0.7), Hqq(0.5)}) == 2
