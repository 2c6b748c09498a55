"""The sampler of a layer's inputs: bounded, uniform, and only of what was seen."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.errors import ConfigError
from monoquant.observers import Call, InputSample, RowSampler
from monoquant.values import PACKABLE_DTYPES

quick = settings(deadline=None, max_examples=150)
streams = st.lists(st.integers(0, 30), max_size=8)
limits = st.integers(1, 60)


def sampled(sizes: list[int], limit: int) -> torch.Tensor | None:
    """Positions of the rows that are kept of a stream that comes in batches of the given sizes."""
    sampler, start = RowSampler(limit), 0
    for size in sizes:
        positions = torch.arange(start, start + size, dtype=torch.float64)
        sampler.update(torch.stack([positions, -positions], dim=1))
        start += size
    result = sampler.result()
    if result is None:
        return None
    assert torch.equal(result[:, 0], -result[:, 1])
    return result[:, 0]


@quick
@given(sizes=streams, limit=limits)
def test_sample_is_bounded_and_without_repeats(sizes: list[int], limit: int) -> None:
    """As many rows as were seen up to the limit, each whole, each once, and none that was not shown."""
    kept = sampled(sizes, limit)
    if not sum(sizes):
        assert kept is None
        return
    assert len(kept) == min(limit, sum(sizes))
    assert len(set(kept.tolist())) == len(kept)
    assert set(kept.tolist()) <= set(range(sum(sizes)))


@quick
@given(sizes=streams.filter(sum))
def test_everything_is_kept_when_it_fits(sizes: list[int]) -> None:
    """A stream shorter than the limit is kept completely."""
    assert sorted(sampled(sizes, sum(sizes) + 1).tolist()) == list(range(sum(sizes)))


@quick
@given(sizes=streams, limit=limits)
def test_sample_is_reproducible(sizes: list[int], limit: int) -> None:
    """The same stream gives the same sample, whatever the state of torch's own random numbers."""
    torch.manual_seed(len(sizes))
    before = torch.random.get_rng_state()
    first = sampled(sizes, limit)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    second = sampled(sizes, limit)
    assert (first is None and second is None) or torch.equal(first, second)


@quick
@given(sizes=streams.filter(sum), limit=limits)
def test_batching_does_not_decide_which_rows_are_kept(sizes: list[int], limit: int) -> None:
    """A stream cut into batches gives the same set of rows as the stream in one piece, up to the generator's blocks."""
    kept = sampled(sizes, limit)
    # Every row draws a key of its own, so a limit of at least the stream makes the cut invisible.
    assert len(kept) == min(limit, sum(sizes))
    if limit >= sum(sizes):
        assert set(kept.tolist()) == set(sampled([sum(sizes)], limit).tolist())


@pytest.mark.parametrize("sizes", [[40_000], [1000] * 40, [1, 3999] * 10, [39_000] + [100] * 10], ids=len)
def test_sample_is_uniform_over_the_stream(sizes: list[int]) -> None:
    """Early and late rows, of large and of small batches, have the same chance: chi-square over 20 equal parts."""
    kept, parts = sampled(sizes, 2000), 20
    counts = torch.histc(kept, parts, 0, sum(sizes))
    expected = len(kept) / parts
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    # 19 degrees of freedom: 43.8 is exceeded once in a thousand seeds, and below 4.9 once in a thousand too.
    assert 4.9 < chi_square < 43.8


@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6), (2, 3, 6), (2, 0, 6)], ids=str)
def test_any_input_shape_counts_its_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Batch dimensions are rows, a 1-D input is one row, no rows are no sample, and the dtype is kept."""
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    sampler = RowSampler(100)
    sampler.update(inputs)
    kept, rows = sampler.result(), inputs.reshape(-1, 6)
    if not len(rows):
        assert kept is None
        return
    assert kept.dtype == dtype
    assert kept.shape == rows.shape
    assert sorted(kept.tolist()) == sorted(rows.tolist())


def test_sample_is_a_copy_without_history() -> None:
    """A model that goes on writing to its activations does not change the sample, nor is a graph kept alive."""
    inputs = torch.ones(4, 3, requires_grad=True)
    shown = inputs * 2
    sampler = RowSampler(10)
    sampler.update(shown)
    shown.data.zero_()
    assert (sampler.result() == 2).all()
    assert not sampler.result().requires_grad


def test_two_samplers_do_not_share_state() -> None:
    """Each layer has a sample of its own."""
    request = InputSample(5, 2)
    first, second = request.observer(), request.observer()
    first.update(torch.ones(3, 2))
    assert second.result() is None
    second.update(torch.zeros(20, 2))
    assert first.result().shape == (3, 2)
    assert second.result().shape == (5, 2)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "many", None])
def test_a_bad_number_of_rows_is_refused(rows: Any) -> None:
    """The error names what was given and what would be right."""
    with pytest.raises(ConfigError, match=r"sample_rows=.*whole number"):
        InputSample(rows, 6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rows_of_a_call_are_those_of_its_first_argument() -> None:
    """By position or by name, nested or not; what no layer of that width would take is left to the layer to refuse."""
    wide, narrow = torch.ones(2, 3, 6), torch.ones(2, 5)
    nested = torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(4, 6)])
    for call, shapes in (
        (Call((wide, narrow), {}), [(2, 3, 6)]),
        (Call((), {"input": wide, "other": narrow}), [(2, 3, 6)]),
        (Call((nested,), {}), [(2, 6), (4, 6)]),
        (Call((narrow, wide), {}), []),
        (Call((torch.tensor(6.0),), {}), []),
        (Call(([wide],), {}), []),
        (Call((), {}), []),
    ):
        assert [tuple(rows.shape) for rows in call.rows(6)] == shapes


def test_a_sample_is_fed_by_calls() -> None:
    """The request knows how to feed its observer, and whether that has seen a row."""
    request = InputSample(10, 6)
    sampler = request.observer()
    for inputs in (torch.ones(3, 5), torch.ones(0, 6)):
        request.feed(sampler, Call((inputs,), {}))
        assert not request.saw_something(sampler)
    request.feed(sampler, Call((torch.ones(3, 2, 6),), {}))
    assert request.saw_something(sampler)
    assert sampler.result().shape == (6, 6)
