"""Moments: sums over input rows, against sums in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from monoquant.statistics.moments import SAMPLE_ROWS, Moments, moment_bytes

both = pytest.mark.parametrize("full", [True, False])


def rows(count: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows with a mean and with correlations."""
    generator = Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return (torch.randn(count, columns, generator=generator) @ mixing + 0.5).to(dtype)


def assert_are_of(moments: Moments, seen: Tensor, rtol: float = 1e-4) -> None:
    """Compare with what follows from all rows at once."""
    exact = seen.double()
    hessian = exact.T @ exact / len(exact)
    assert moments.rows == len(seen)
    size = float(hessian.diagonal().mean())
    close: dict[str, Any] = {"rtol": rtol, "atol": rtol * size}
    torch.testing.assert_close(moments.importance.double(), hessian.diagonal(), **close)
    torch.testing.assert_close(moments.mean.double(), exact.mean(0), rtol=rtol, atol=rtol * size**0.5)
    if moments.full:
        torch.testing.assert_close(moments.hessian.double(), hessian, **close)
        assert torch.equal(moments.hessian, moments.hessian.T)


@both
@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any),
    columns=st.integers(1, 40),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.float16, torch.bfloat16)),
    seed=st.integers(0, 2**32 - 1),
)
def test_moments_are_those_of_all_rows(
    full: bool, counts: list[int], columns: int, dtype: torch.dtype, seed: int
) -> None:
    """However rows come, means over them are what they are over all at once; in double precision where inputs are."""
    moments = Moments(columns, full=full)
    parts = [rows(count, columns, seed + index, dtype) for index, count in enumerate(counts)]
    for part in parts:
        moments.add(part)
    assert_are_of(moments, torch.cat(parts), rtol=1e-10 if dtype == torch.float64 else 1e-4)
    assert moments.importance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert moments.held_out is None


@both
@pytest.mark.parametrize("columns", [3, 300, 513])
def test_many_rows_and_columns(full: bool, columns: int) -> None:
    """More than are added at once, in either direction."""
    moments, seen = Moments(columns, full=full), rows(8192 + 8192 + 5, columns)
    moments.add(seen)
    assert_are_of(moments, seen)


@both
@settings(max_examples=40)
@given(
    broken=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 6)), max_size=30),
    poison=st.sampled_from((float("nan"), float("inf"), float("-inf"))),
)
def test_broken_rows_are_left_out_and_counted(full: bool, broken: list[tuple[int, int]], poison: float) -> None:
    """One bad element spoils its row and no other."""
    seen = rows(20, 7)
    for row, column in broken:
        seen[row, column] = poison
    moments = Moments(7, full=full)
    moments.add(seen)
    finite = torch.isfinite(seen).all(1)
    assert moments.broken_rows == int((~finite).sum())
    assert moments.rows == int(finite.sum())
    if finite.any():
        assert_are_of(moments, seen[finite])
    moments.hold_out(seen)
    assert moments.broken_rows == 2 * int((~finite).sum())
    assert moments.held_out is None or len(moments.held_out) == int(finite.sum())


def test_large_values_are_not_taken_for_broken_ones() -> None:
    """A sum that overflows says nothing of its terms, of which some are infinite and some are not."""
    seen = torch.full((4, 3), 3e38)
    seen[2, 0] = float("inf")
    moments = Moments(3, full=False)
    moments.hold_out(seen)
    assert moments.broken_rows == 1
    assert len(moments.held_out) == 3


@both
def test_held_out_rows_are_kept_and_not_counted(full: bool) -> None:
    """A bounded sample of them, in the dtype of calculation."""
    moments, seen = Moments(6, full=full), rows(50, 6)
    moments.add(seen)
    apart = rows(40, 6, seed=1)
    moments.hold_out(apart)
    assert_are_of(moments, seen)
    kept = {tuple(row) for row in moments.held_out.tolist()}
    assert kept == {tuple(row) for row in apart.tolist()}
    moments.hold_out(rows(1000, 6, seed=2).half())
    assert len(moments.held_out) == SAMPLE_ROWS
    assert moments.held_out.dtype == torch.float32
    assert moments.rows == 50


@both
def test_merged_moments_are_of_the_rows_of_both(full: bool) -> None:
    """Sums, counts, broken rows and held-out ones; neither of the two is changed."""
    one, other, empty = (Moments(6, full=full) for _ in range(3))
    seen = [rows(20, 6), rows(30, 6, seed=1)]
    seen[1][3, 3] = float("nan")
    for moments, part in zip((one, other), seen, strict=True):
        moments.add(part)
        moments.hold_out(part[:5])
    both_rows = torch.cat(seen)
    both_rows = both_rows[torch.isfinite(both_rows).all(1)]
    for merged in (
        one.merged(other),
        other.merged(one),
        one.merged(other).merged(empty),
        empty.merged(one).merged(other),
    ):
        assert_are_of(merged, both_rows)
        assert merged.broken_rows == 2  # one was added, and held out again
        assert len(merged.held_out) == 9
    assert_are_of(one, seen[0])
    assert (one.rows, other.rows, len(one.held_out)) == (20, 29, 5)
    assert empty.rows == 0


@both
def test_copied_moments_go_their_own_way(full: bool) -> None:
    """What is added to one is not in the other."""
    one, seen = Moments(6, full=full), rows(20, 6)
    one.add(seen)
    other = one.copied()
    one.add(rows(5, 6, seed=1))
    assert_are_of(other, seen)
    other.add(rows(7, 6, seed=2))
    assert (one.rows, other.rows) == (25, 27)


@both
@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    broken=st.booleans(),
    weighted=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_may_count_differently(
    full: bool, counts: list[int], broken: bool, weighted: list[bool], seed: int
) -> None:
    """Means are weighted ones; rows without weights count as one, and what is left out takes its weight with it."""
    moments, other = Moments(5, full=full), Moments(5, full=full)
    seen, factors = [], []
    for index, count in enumerate(counts):
        part = rows(count, 5, seed + index)
        weights = torch.rand(count, generator=Generator().manual_seed(seed + index)) + 0.1
        if broken and index == 0:
            part[0, 0] = float("nan")
        (moments if index % 2 else other).add(part, weights if weighted[index] else None)
        finite = torch.isfinite(part).all(1)
        seen.append(part[finite].double())
        factors.append((weights if weighted[index] else torch.ones(count))[finite].double())
    total, weights = torch.cat(seen), torch.cat(factors)
    if not len(total):
        return
    found = moments.merged(other)
    assert found.rows == len(total)
    assert found.weighted == any(weighted[: len(counts)])
    hessian = (total * weights.unsqueeze(1)).T @ total / weights.sum()
    torch.testing.assert_close(found.importance.double(), hessian.diagonal(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.mean.double(), (total * weights.unsqueeze(1)).sum(0) / weights.sum(), rtol=1e-4, atol=1e-4
    )
    if full:
        torch.testing.assert_close(found.hessian.double(), hessian, rtol=1e-4, atol=1e-4)


@both
def test_many_rows_that_count_differently(full: bool) -> None:
    """More than are added at once."""
    moments, seen = Moments(3, full=full), rows(8192 + 5, 3)
    weights = torch.zeros(8192 + 5)
    weights[-5:] = torch.arange(1.0, 6)
    moments.add(seen, weights)
    expected = (seen[-5:].double().square() * weights[-5:].unsqueeze(1)).sum(0) / 15
    torch.testing.assert_close(moments.importance.double(), expected, rtol=1e-4, atol=1e-6)


@both
def test_moments_of_nothing_have_no_value(full: bool) -> None:
    """Asking for them is an error rather than a division by zero."""
    moments = Moments(6, full=full)
    moments.add(torch.empty(0, 6))
    moments.add(torch.full((3, 6), torch.nan))
    assert (moments.rows, moments.broken_rows, moments.held_out) == (0, 3, None)
    for name in ("mean", "importance", "hessian"):
        with pytest.raises(ValueError, match="moments of no rows"):
            getattr(moments, name)


def test_inputs_are_not_kept_nor_changed() -> None:
    """A model that goes on writing to its activations does not change sums or samples."""
    moments, seen = Moments(6, full=True), rows(20, 6)
    moments.add(seen)
    moments.hold_out(seen)
    before = seen.clone()
    seen.zero_()
    assert_are_of(moments, before)
    assert sorted(moments.held_out.tolist()) == sorted(before.tolist())


@both
def test_bytes_are_those_of_the_sums(full: bool) -> None:
    """What waves are reckoned with is what the sums of float32 inputs take."""
    moments = Moments(50, full=full)
    moments.add(rows(3, 50))
    held = [value for value in vars(moments).values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == moment_bytes(50, full=full)
