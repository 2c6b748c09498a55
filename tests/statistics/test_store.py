"""StatisticsStore and waves: what fits together is together, and is collected when it is asked for."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import monoquant as mq
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.statistics.collector import RowStatistics
from monoquant.statistics.moments import Moments, moment_bytes
from monoquant.statistics.store import Collected, Key, StatisticsStore, in_waves
from monoquant.statistics.watch import WatchedWeight


def watched(layer: str, shape: tuple[int, ...]) -> WatchedWeight:
    form = MatrixForm.along(shape, -1) if len(shape) > 2 else MatrixForm.rows_first(shape)
    return WatchedWeight(layer, "weight", torch.empty(shape, device="meta"), form)


def key(layer: str) -> Key:
    return layer, "weight"


@given(columns=st.lists(st.integers(1, 60), max_size=12), limit=st.integers(4 * 60 * 61, 4 * 60 * 61 * 6))
def test_waves_hold_what_fits_in_order(columns: list[int], limit: int) -> None:
    """Every weight is in one wave, in order; no wave is too large, and none could have taken the next weight, too."""
    weights = [watched(str(number), (3, count)) for number, count in enumerate(columns)]
    waves = in_waves(weights, {key(one.layer): True for one in weights}, limit)
    assert [one for wave in waves for one in wave] == weights
    sizes = [[moment_bytes(one.form.columns, full=True) for one in wave] for wave in waves]
    assert all(sum(wave) <= limit for wave in sizes)
    assert all(sum(wave) + following[0] > limit for wave, following in itertools.pairwise(sizes))


def test_a_weight_that_does_not_fit_is_an_error() -> None:
    """All such weights are named, with the bytes they take and the way out."""
    weights = [watched(layer, (3, columns)) for layer, columns in (("a", 10), ("b", 50), ("c", 20), ("d", 60))]
    with pytest.raises(
        mq.InputError, match=rf"statistics_bytes=2000 is too little for .*'b', 'd', .* {4 * 60 * 61} bytes.*clip_search"
    ) as caught:
        in_waves(weights, {key(layer): True for layer in "abcd"}, 2000)
    assert caught.value.layers == ("b", "d")
    assert len(in_waves(weights, {key(layer): False for layer in "abcd"}, 2000)) == 1


def test_stacked_weights_have_statistics_for_each_item() -> None:
    """Experts meet inputs of their own."""
    stack = watched("experts", (4, 6, 10))
    needed = 4 * moment_bytes(10, full=True)
    assert len(in_waves([stack], {key("experts"): True}, needed)) == 1
    with pytest.raises(mq.InputError, match=str(needed)):
        in_waves([stack], {key("experts"): True}, needed - 1)


def test_nothing_to_collect_is_one_wave() -> None:
    """The data is run all the same, for those who listen."""
    assert in_waves([], {}, 1) == [[]]


class Data:
    """Counts how often it is run, and for what."""

    def __init__(self) -> None:
        self.runs: list[list[str]] = []

    def collect(self, keys: Collection[Key]) -> Collected:
        self.runs.append(sorted(layer for layer, _ in keys))
        return {one: [RowStatistics(0, 3, Moments(2, full=True))] for one in keys}


def test_waves_are_collected_when_they_are_asked_for() -> None:
    """Once for each wave if asked in order; what is not of any wave is unknown and costs no run."""
    data = Data()
    store = StatisticsStore(
        [[key("a"), key("b")], [key("c")], [key("d")]], data.collect, data.collect([key("a"), key("b")])
    )
    for layer in "abbcdd":
        [part] = store.of(key(layer))
        assert part.stop == 3
    assert store.of(key("unknown")) == ()
    assert data.runs == [["a", "b"], ["c"], ["d"]]
    assert store.of(key("a"))
    assert data.runs[3:] == [["a", "b"]]


def test_one_wave_is_in_memory_at_a_time() -> None:
    """The one before is let go before the next is collected."""
    moments = Moments(2, full=True)
    alive = weakref.ref(moments)
    first: Collected = {key("a"): [RowStatistics(0, 3, moments)]}
    del moments

    def collect(keys: Collection[Key]) -> Collected:
        assert alive() is None
        return {one: [] for one in keys}

    store = StatisticsStore([[key("a")], [key("b")]], collect, first)
    del first
    assert store.of(key("a"))
    assert store.of(key("b")) == []


def test_sharing_tells_who_meets_the_same_inputs() -> None:
    """Rows of any weight in memory with the same object of moments, those asked about included."""
    common, own = Moments(2, full=True), Moments(2, full=True)
    parts = {
        key("q"): [RowStatistics(0, 3, common)],
        key("k"): [RowStatistics(0, 2, own), RowStatistics(2, 5, common)],
        key("v"): [RowStatistics(0, 3, own.copied())],
    }
    store = StatisticsStore([list(parts)], lambda _keys: {}, parts)
    found = [(layer, part.start) for (layer, _), part in store.sharing(parts[key("q")][0])]
    assert found == [("q", 0), ("k", 2)]
    assert [layer for (layer, _), _ in store.sharing(parts[key("v")][0])] == ["v"]
