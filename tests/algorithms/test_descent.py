"""Coordinate descent: no step makes codes worse, and where none could be better it ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import monoquant as mq
from monoquant.algorithms.base import WeightProblem
from monoquant.algorithms.descent import descend
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.numerics.affine import GroupCodes, dequantize

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, columns: int, *, symmetric: bool = False, rows: int = 6) -> WeightProblem:
    """A matrix in groups of 16, whose inputs mostly lie in a few directions."""
    generator = Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(3 * columns, 6, generator=generator) @ torch.randn(6, columns, generator=generator)
    inputs += 0.3 * torch.randn(3 * columns, columns, generator=generator)
    hessian = inputs.T @ inputs / len(inputs)
    scheme = mq.Scheme(group_size=16, symmetric=symmetric, scale_dtype=torch.float32)
    return WeightProblem(matrix, 16, scheme, hessian.diagonal().clone(), hessian, len(inputs))


def error(given: WeightProblem, codes: GroupCodes) -> Tensor:
    found = dequantize(codes.codes, codes.scale, codes.zero_point, given.width)
    return given.weight.double() - found.double()


def cost(given: WeightProblem, codes: GroupCodes) -> Tensor:
    """Of each row, ``e H e^T``."""
    rest = error(given, codes)
    return ((rest @ given.hessian.double()) * rest).sum(1)


@settings(max_examples=30)
@given(seed=SEEDS, groups=st.integers(1, 9), symmetric=st.booleans())
def test_every_sweep_lowers_the_cost_of_every_row(seed: int, groups: int, symmetric: bool) -> None:
    """Or leaves it as it was; the grid stays, and codes stay in range."""
    given_ = problem(seed, 16 * groups, symmetric=symmetric)
    start = RoundToNearest().solve(given_).codes
    costs = [cost(given_, start)]
    for sweeps in (1, 2, 3):
        codes = descend(given_, start, given_.hessian, sweeps)
        assert torch.equal(codes.scale, start.scale)
        assert torch.equal(codes.zero_point, start.zero_point)
        assert codes.codes.dtype == torch.uint8
        assert int(codes.codes.max()) <= 15
        costs.append(cost(given_, codes))
        assert bool((costs[-1] <= costs[-2] * (1 + 1e-4) + 1e-6).all())
    assert float(costs[-1].sum()) < float(costs[0].sum())


def test_no_sweeps_change_nothing() -> None:
    """What was given is returned."""
    given_ = problem(0, 48)
    start = RoundToNearest().solve(given_).codes
    assert descend(given_, start, given_.hessian, 0) is start


@settings(max_examples=30)
@given(seed=SEEDS, groups=st.integers(1, 9))
def test_in_the_end_no_single_code_could_be_better(seed: int, groups: int) -> None:
    """One more or one less, for any code, with all others held, costs at least as much."""
    given_ = problem(seed, 16 * groups, rows=3)
    codes = descend(given_, RoundToNearest().solve(given_).codes, given_.hessian, 60)
    rest, hessian = error(given_, codes), given_.hessian.double()
    pull, scale = rest @ hessian, codes.scale.double().repeat_interleave(16, 1)
    for step in (1, -1):
        possible = (codes.codes < 15) if step > 0 else (codes.codes > 0)
        # A code that changes by a step changes the error by -step * scale, and the cost by what follows from that.
        change = -2 * step * scale * pull + scale.square() * hessian.diagonal()
        assert bool((change[possible] >= -1e-3 * hessian.diagonal().mean() * float(scale.max()) ** 2).all())


@settings(max_examples=20)
@given(seed=SEEDS)
def test_what_is_nearest_stays_where_inputs_do_not_correlate(seed: int) -> None:
    """There is nothing to make up for."""
    given_ = problem(seed, 48)
    start = RoundToNearest().solve(given_).codes
    codes = descend(given_, start, torch.eye(48), 3)
    assert torch.equal(codes.codes, start.codes)


@pytest.mark.parametrize("columns", [16, 64, 80, 144])
def test_blocks_do_not_matter(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many columns are visited at once, each meets the errors that those before it have left."""
    from monoquant.algorithms import descent

    given_ = problem(0, columns)
    start = RoundToNearest().solve(given_).codes
    whole = descend(given_, start, given_.hessian, 2).codes
    monkeypatch.setattr(descent, "_BLOCK", 7)
    parts = descend(given_, start, given_.hessian, 2).codes
    assert float((whole != parts).float().mean()) < 0.01  # sums in another order may decide between equals
