"""GPTQ: what follows from what it minimizes, and what it does with Hessians that are hard to factor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import monoquant as mq
from monoquant.algorithms.base import Solution, WeightProblem
from monoquant.algorithms.clean import InputStatistics, solve
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.numerics.affine import dequantize
from monoquant.numerics.grid import nearest_codes

SCHEMES = (mq.Scheme(group_size=32), mq.Scheme(group_size=32, symmetric=True), mq.Scheme(8, None))
SEEDS = st.integers(0, 2**32 - 1)


def known(inputs: Tensor) -> InputStatistics:
    """Statistics of input rows."""
    hessian = inputs.T @ inputs / len(inputs)
    return InputStatistics(len(inputs), hessian.diagonal().clone(), hessian)


def correlated(seed: int, rows: int, columns: int, directions: int = 8) -> Tensor:
    """Input rows that mostly lie in a few directions, as those of real layers do."""
    generator = Generator().manual_seed(seed)
    mixing = torch.randn(directions, columns, generator=generator)
    noise = torch.randn(rows, columns, generator=generator)
    return torch.randn(rows, directions, generator=generator) @ mixing + 0.3 * noise


def gaussian(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=Generator().manual_seed(seed))


def values(solution: Solution, scheme: mq.Scheme) -> Tensor:
    codes = solution.codes
    return dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(codes.codes.shape[1])).double()


def noise(solution: Solution, matrix: Tensor, scheme: mq.Scheme, hessian: Tensor) -> float:
    """``trace(D H D^T)``, in double precision."""
    error = values(solution, scheme) - matrix.double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@settings(max_examples=30)
@given(columns=st.integers(1, 100), size=st.sampled_from((1e-6, 1.0, 1e6)), seed=SEEDS)
def test_inputs_without_correlation_leave_nothing_to_make_up_for(
    scheme: mq.Scheme, columns: int, size: float, seed: int
) -> None:
    """With a multiple of the identity as Hessian, each code is the nearest on the grid that was chosen, or tied."""
    matrix = gaussian(seed, 6, columns)
    inputs = InputStatistics(10**6, torch.full((columns,), size), size * torch.eye(columns))
    codes = solve(Gptq(), matrix, scheme, inputs).codes
    scale, zero_point = (
        one.float().repeat_interleave(scheme.width(columns), 1)[:, :columns] for one in (codes.scale, codes.zero_point)
    )
    nearest = nearest_codes(matrix, scale, zero_point, scheme.max_code)
    chosen, best = (((one - zero_point) * scale - matrix).abs() for one in (codes.codes.float(), nearest))
    assert torch.allclose(chosen, best, rtol=1e-4, atol=1e-7)
    assert float((codes.codes.float() != nearest).float().mean()) < 0.02


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@settings(max_examples=30)
@given(columns=st.integers(32, 130), rows=st.integers(8, 24), seed=SEEDS)
def test_outputs_of_correlated_inputs_lose_less(
    sweeps: int, scheme: mq.Scheme, columns: int, rows: int, seed: int
) -> None:
    """Where inputs lie in few directions, noise is less than half of what rounding to nearest makes of it."""
    matrix, inputs = gaussian(seed, rows, columns), known(correlated(seed + 1, 4 * columns + 64, columns))
    fitted, nearest = (
        noise(solve(algorithm, matrix, scheme, inputs), matrix, scheme, inputs.hessian)
        for algorithm in (Gptq(sweeps=sweeps), RoundToNearest())
    )
    assert fitted < 0.4 * nearest


@settings(max_examples=30)
@given(seed=SEEDS, symmetric=st.booleans())
def test_the_order_of_columns_in_a_group_does_not_matter(seed: int, symmetric: bool) -> None:
    """Permuting them in the weight and in the inputs permutes the values that codes stand for.

    Sums in another order may decide between two equally good ranges of a group: rows where they did may differ.
    """
    scheme = mq.Scheme(group_size=32, symmetric=symmetric, scale_dtype=torch.float32)
    matrix, inputs = gaussian(seed, 16, 80), correlated(seed + 1, 400, 80)
    generator = Generator().manual_seed(seed + 2)
    places = torch.cat([start + torch.randperm(min(32, 80 - start), generator=generator) for start in (0, 32, 64)])
    one = values(solve(Gptq(), matrix, scheme, known(inputs)), scheme)
    other = values(solve(Gptq(), matrix[:, places], scheme, known(inputs[:, places])), scheme)
    different = ~torch.isclose(one[:, places], other, atol=1e-6).all(1)
    assert int(different.sum()) <= 2


def test_rows_do_not_depend_on_each_other() -> None:
    """Weights that share inputs may be solved at once: each gets the codes it would get alone, but for rounding."""
    scheme = mq.Scheme(group_size=32)
    matrix, inputs = gaussian(0, 40, 96), known(correlated(1, 500, 96))
    together = values(solve(Gptq(), matrix, scheme, inputs), scheme)
    apart = torch.cat([values(solve(Gptq(), part, scheme, inputs), scheme) for part in matrix.split(13)])
    assert int((~torch.isclose(together, apart, atol=1e-6)).any(1).sum()) <= 1


def dead_columns(inputs: Tensor) -> Tensor:
    inputs[:, ::3] = 0
    return inputs


def duplicated(inputs: Tensor) -> Tensor:
    inputs[:, 1::2] = inputs[:, ::2]
    return inputs


def rank_one(inputs: Tensor) -> Tensor:
    return inputs[:, :1] * inputs[:1]


def all_alike(inputs: Tensor) -> Tensor:
    return inputs[:, :1].repeat(1, inputs.shape[1])


def few(inputs: Tensor) -> Tensor:
    return inputs[:20]


def one_column(inputs: Tensor) -> Tensor:
    return inputs * (torch.arange(inputs.shape[1]) == 5)


def outlier(inputs: Tensor) -> Tensor:
    inputs[:, 7] *= 1000
    return inputs


@pytest.mark.parametrize("spoil", [dead_columns, duplicated, rank_one, all_alike, few, one_column, outlier])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_singular_hessians_can_be_factored(spoil: Any, scheme: mq.Scheme) -> None:
    """Inputs that do not span the space are no obstacle: no fallback, and less noise than rounding to nearest makes."""
    matrix, inputs = gaussian(0, 16, 96), known(spoil(gaussian(1, 300, 96)))
    solution = solve(Gptq(), matrix, scheme, inputs)
    assert solution.fallback == ""
    nearest = noise(solve(RoundToNearest(), matrix, scheme), matrix, scheme, inputs.hessian)
    assert noise(solution, matrix, scheme, inputs.hessian) < nearest


def test_columns_without_inputs_keep_their_weights() -> None:
    """They take no part in the making up for others, since data to come may use them."""
    scheme = mq.Scheme(group_size=32)
    matrix, inputs = gaussian(0, 16, 96), known(dead_columns(correlated(1, 300, 96)))
    error = (values(solve(Gptq(), matrix, scheme, inputs), scheme) - matrix)[:, ::3]
    nearest = (values(solve(RoundToNearest(), matrix, scheme), scheme) - matrix)[:, ::3]
    assert float(error.square().mean()) < 2 * float(nearest.square().mean())


def hessian_problem(hessian: Tensor) -> WeightProblem:
    columns = len(hessian)
    return WeightProblem(
        gaussian(0, 5, columns), columns, mq.Scheme(), torch.ones(columns), hessian.contiguous(), samples=10**6
    )


def with_correlation(correlation: float, columns: int = 4) -> Tensor:
    """Ones on the diagonal; indefinite if two columns correlate by more than 1."""
    return torch.eye(columns).lerp(torch.ones(columns, columns), correlation).fill_diagonal_(1)


@pytest.mark.parametrize(
    "hessian",
    [with_correlation(3.0), torch.full((4, 4), torch.nan), torch.eye(4) * torch.inf, with_correlation(float("nan"))],
    ids=["indefinite", "NaN", "infinite", "NaN beside the diagonal"],
)
def test_what_cannot_be_factored_is_told(hessian: Tensor) -> None:
    """Codes are then those of rounding to nearest, and say why."""
    problem = hessian_problem(hessian)
    solution, nearest = Gptq().solve(problem), RoundToNearest().solve(problem)
    assert "cannot be factored" in solution.fallback
    assert torch.equal(solution.codes.codes, nearest.codes.codes)
    assert torch.equal(solution.codes.scale, nearest.codes.scale)


@pytest.mark.parametrize("correlation", [1.005, 1.05, 1.2])
def test_what_is_nearly_definite_is_damped_until_it_is(correlation: float) -> None:
    """Rounding errors in sums over few rows are no reason to give up."""
    assert Gptq(damping=0.001).solve(hessian_problem(with_correlation(correlation))).fallback == ""


def test_damping_draws_towards_rounding_to_nearest() -> None:
    """Much of it hides correlations, so that the weights themselves lose less and the outputs more."""
    scheme = mq.Scheme(group_size=32, scale_dtype=torch.float32)
    matrix, inputs = gaussian(0, 32, 96), known(correlated(1, 1000, 96))
    little, much = (solve(Gptq(damping=damping), matrix, scheme, inputs) for damping in (0.001, 0.99))
    assert noise(little, matrix, scheme, inputs.hessian) < noise(much, matrix, scheme, inputs.hessian)
    assert noise(little, matrix, scheme, torch.eye(96)) > noise(much, matrix, scheme, torch.eye(96))


@pytest.mark.parametrize("damping", [0, 0.0, 1, 1.5, -0.1, True, "0.01", float("nan"), float("inf"), 1j])
def test_bad_damping_is_refused(damping: Any) -> None:
    """The error names what was given and what would be right."""
    with pytest.raises(mq.ConfigError, match=r"damping=.*fraction of the mean of the Hessian's diagonal"):
        Gptq(damping=damping)


@pytest.mark.parametrize("sweeps", [-1, 1.0, True, None, "2"])
def test_bad_sweeps_are_refused(sweeps: Any) -> None:
    """A whole number, also none at all."""
    with pytest.raises(mq.ConfigError, match=r"sweeps=.*whole number >= 0"):
        Gptq(sweeps=sweeps)


@pytest.mark.parametrize("weigh_rows", [0, None, "yes"])
def test_weighing_rows_is_a_flag(weigh_rows: Any) -> None:
    """Nothing else is taken for one."""
    with pytest.raises(mq.ConfigError, match="weigh_rows="):
        Gptq(weigh_rows=weigh_rows)
    assert (Gptq().weighs_rows, Gptq(weigh_rows=False).weighs_rows) == (True, False)


def test_sweeps_make_it_better() -> None:
    """On what was fitted to, with the damping that was fitted with."""
    matrix, inputs = gaussian(0, 32, 96), known(correlated(1, 1000, 96))
    damped = inputs.hessian + 0.01 * inputs.hessian.diagonal().mean() * torch.eye(96)
    scheme = mq.Scheme(group_size=32)
    noises = [
        noise(solve(Gptq(damping=0.01, sweeps=sweeps), matrix, scheme, inputs), matrix, scheme, damped)
        for sweeps in (0, 1, 4)
    ]
    assert noises == sorted(noises, reverse=True)
    assert noises[-1] < 0.95 * noises[0]


def test_damping_is_chosen_where_it_is_not_given() -> None:
    """The default is one of a careful person's, and can be given by hand."""
    matrix, inputs = gaussian(0, 16, 64), known(correlated(1, 1000, 64))
    default = solve(Gptq(), matrix, mq.Scheme(), inputs).codes.codes
    assert torch.equal(default, solve(Gptq(damping=0.01), matrix, mq.Scheme(), inputs).codes.codes)
    assert not torch.equal(default, solve(Gptq(damping=0.5), matrix, mq.Scheme(), inputs).codes.codes)
    few = known(correlated(1, 64, 64))
    assert not torch.equal(
        solve(Gptq(), matrix, mq.Scheme(), few).codes.codes,
        solve(Gptq(damping=0.01), matrix, mq.Scheme(), few).codes.codes,
    )
