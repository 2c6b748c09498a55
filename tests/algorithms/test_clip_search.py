"""clip_search: it finds the best of the ranges it tries, by the weighting it was given."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import monoquant as mq
from monoquant.algorithms.base import Solution, WeightProblem
from monoquant.algorithms.clean import InputStatistics, solve
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.numerics.affine import dequantize
from monoquant.numerics.grid import nearest_codes, storable
from monoquant.testing.strategies import schemes, weights

SEEDS = st.integers(0, 2**32 - 1)


def values(solution: Solution, scheme: mq.Scheme) -> Tensor:
    codes = solution.codes
    return dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(codes.codes.shape[1]))


def weighted_noise(values: Tensor, matrix: Tensor, importance: Tensor, width: int) -> Tensor:
    """Of each group, in double precision."""
    noise = (values.double() - matrix.double()).square() * importance.double()
    return torch.stack([group.sum(1) for group in noise.split(width, 1)], 1)


def resolution(matrix: Tensor, importance: Tensor) -> float:
    """Noise that single precision cannot tell from none."""
    size = float(matrix.double().square().amax() * importance.amax() * matrix.shape[1])
    return 1e-12 * size + torch.finfo(torch.float32).smallest_normal


def importance_of(seed: int, columns: int) -> Tensor:
    """From a thirtieth to thirty: no column so low that it would be raised."""
    return 10 ** (3 * torch.rand(columns, generator=Generator().manual_seed(seed)) - 1.5)


def known(importance: Tensor) -> InputStatistics:
    return InputStatistics(1000, importance)


def unclipped(matrix: Tensor, scheme: mq.Scheme) -> list[Tensor]:
    """What the whole range of each group, rounded as scales are stored, would stand for; both signs where symmetric."""
    width, found = scheme.width(matrix.shape[1]), []
    for sign in (1.0, -1.0) if scheme.symmetric else (1.0,):
        parts = []
        for group in matrix.float().split(width, 1):
            low, high = group.amin(1, keepdim=True).clamp_max(0), group.amax(1, keepdim=True).clamp_min(0)
            if scheme.symmetric:
                scale = storable(sign * torch.maximum(-low, high) / scheme.middle_code, scheme.scale_dtype)
                zero_point = torch.full_like(scale, scheme.middle_code)
            else:
                scale = storable(high / scheme.max_code - low / scheme.max_code, scheme.scale_dtype)
                zero_point = (-low / scale).round().clamp(0, scheme.max_code)
            parts.append((nearest_codes(group, scale, zero_point, scheme.max_code) - zero_point) * scale)
        found.append(torch.cat(parts, 1))
    return found


@settings(max_examples=100)
@given(matrix=weights(max_rows=4, max_columns=140), scheme=schemes(), seed=SEEDS)
def test_no_group_loses_more_than_unclipped(matrix: Tensor, scheme: mq.Scheme, seed: int) -> None:
    """The whole range is one of those that are tried, so the best one makes no more weighted noise."""
    importance = importance_of(seed, matrix.shape[1])
    width = scheme.width(matrix.shape[1])
    solution = solve(ClipSearch(), matrix, scheme, known(importance))
    found = weighted_noise(values(solution, scheme), matrix, importance, width)
    for whole in unclipped(matrix, scheme):
        least = weighted_noise(whole, matrix, importance, width)
        assert bool((found <= least * (1 + 1e-4) + resolution(matrix, importance)).all())


@settings(max_examples=60)
@given(matrix=weights(max_rows=4, max_columns=140), seed=SEEDS, group_size=st.integers(1, 140))
def test_asymmetric_groups_lose_no_more_than_rounded_ones(matrix: Tensor, seed: int, group_size: int) -> None:
    """With scales that hardly need rounding, the range of round_to_nearest is among those that are tried."""
    scheme = mq.Scheme(group_size=group_size, scale_dtype=torch.float32)
    importance, width = importance_of(seed, matrix.shape[1]), scheme.width(matrix.shape[1])
    one, other = (
        weighted_noise(values(solve(algorithm, matrix, scheme, known(importance)), scheme), matrix, importance, width)
        for algorithm in (ClipSearch(), RoundToNearest())
    )
    assert bool((one <= other * (1 + 1e-4) + resolution(matrix, importance)).all())


@settings(max_examples=60)
@given(scheme=schemes(), rows=st.integers(1, 4), columns=st.integers(2, 140), seed=SEEDS)
def test_each_weighting_is_served_best_by_itself(scheme: mq.Scheme, rows: int, columns: int, seed: int) -> None:
    """Whatever importance is, the codes that were chosen by it make the least noise that is weighted by it."""
    matrix = torch.randn(rows, columns, generator=Generator().manual_seed(seed))
    one, other = importance_of(seed + 1, columns), importance_of(seed + 2, columns)
    width = scheme.width(columns)
    by_one, by_other = (values(solve(ClipSearch(), matrix, scheme, known(each)), scheme) for each in (one, other))
    for importance, own, foreign in ((one, by_one, by_other), (other, by_other, by_one)):
        mine, theirs = (weighted_noise(each, matrix, importance, width) for each in (own, foreign))
        assert bool((mine <= theirs * (1 + 1e-4) + 1e-12).all())


def test_clipping_helps() -> None:
    """Gaussian rows of 128 lose about a tenth less than when nothing is clipped, symmetric ones too."""
    for symmetric in (False, True):
        scheme = mq.Scheme(symmetric=symmetric)
        matrix = torch.randn(200, 128, generator=Generator().manual_seed(0))
        one, other = (
            float((values(solve(algorithm, matrix, scheme), scheme) - matrix).square().mean())
            for algorithm in (ClipSearch(), RoundToNearest())
        )
        assert one < 0.93 * other


def test_columns_that_count_more_are_served_better() -> None:
    """An outlier among columns that count is clipped, one that counts itself is not."""
    matrix = torch.randn(64, 32, generator=Generator().manual_seed(0))
    matrix[:, 0] = 8.0
    scheme = mq.Scheme(group_size=32)

    def error(importance_of_outlier: float) -> Tensor:
        importance = torch.ones(32)
        importance[0] = importance_of_outlier
        found = values(solve(ClipSearch(), matrix, scheme, known(importance)), scheme)
        return (found - matrix).square()

    ignored, feared = error(1e-3), error(1e3)
    assert float(ignored[:, 0].mean()) > 1
    assert float(feared[:, 0].mean()) < 0.05
    assert float(ignored[:, 1:].mean()) < 0.85 * float(feared[:, 1:].mean())


@settings(max_examples=30)
@given(scheme=schemes(), columns=st.integers(1, 140), power=st.integers(-20, 20), seed=SEEDS)
def test_only_ratios_of_importance_count(scheme: mq.Scheme, columns: int, power: int, seed: int) -> None:
    """Inputs that are all larger by a factor change nothing; unknown ones are all alike."""
    matrix = torch.randn(3, columns, generator=Generator().manual_seed(seed))
    importance = importance_of(seed + 1, columns)
    one, other = (
        solve(ClipSearch(), matrix, scheme, known(each)).codes for each in (importance, importance * 2.0**power)
    )
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale, other.scale)
    alike, unknown = (
        solve(ClipSearch(), matrix, scheme, each).codes for each in (known(torch.full((columns,), 2.0**power)), None)
    )
    assert torch.equal(alike.codes, unknown.codes)
    assert torch.equal(alike.scale, unknown.scale)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_large_matrices_are_searched_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows are worked on at once, each gets the same codes."""
    from monoquant.algorithms import clip_search

    scheme = mq.Scheme(group_size=16)
    matrix = torch.randn(300, 40, generator=Generator().manual_seed(0))
    whole = solve(ClipSearch(), matrix, scheme).codes
    monkeypatch.setattr(
        clip_search,
        "row_chunks",
        lambda count, _columns: [slice(start, min(start + rows, count)) for start in range(0, count, rows)],
    )
    parts = solve(ClipSearch(), matrix, scheme).codes
    for field in attrs.fields_dict(type(whole)):
        assert torch.equal(getattr(whole, field), getattr(parts, field))


def test_importance_may_come_alone() -> None:
    """A problem without samples or Hessian is all it needs."""
    matrix = torch.randn(3, 32, generator=Generator().manual_seed(0))
    problem = WeightProblem(matrix, 16, mq.Scheme(group_size=16), importance=importance_of(0, 32))
    direct = ClipSearch().solve(problem).codes.codes
    assert torch.equal(direct, solve(ClipSearch(), matrix, problem.scheme, known(problem.importance)).codes.codes)
