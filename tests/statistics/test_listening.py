"""Listening: who hears what of calls, and that outputs are measured on what was not fitted to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monoquant.observers import CallSample, InputRange, InputSample
from monoquant.ranges import BUILT_IN_OBSERVERS
from monoquant.statistics.listening import Listening

ROWS, CALLS, RANGE = InputSample(100, 4), CallSample(10**6), InputRange(BUILT_IN_OBSERVERS[0], 4)


def run(listening: Listening, *parts: tuple[float, bool]) -> None:
    """Call a layer with two rows of each value, held out or not."""
    layer = nn.Linear(4, 3)
    with listening.listening({"layer": layer}):
        for value, held_out in parts:
            listening.held_out = held_out
            layer(torch.full((2, 4), value))


def measured(listening: Listening) -> list[float]:
    """First elements of the rows that outputs would be measured on."""
    rows = listening.fulfilled()["layer", ROWS].result()
    calls = [call.args[0] for call in listening.fulfilled()["layer", CALLS].calls]
    assert sorted(torch.cat(calls)[:, 0].tolist()) == sorted(rows[:, 0].tolist())
    return sorted(set(rows[:, 0].tolist()))


MIXED = ((1.0, False), (2.0, True), (3.0, False), (4.0, True))


def test_outputs_are_measured_on_what_is_held_out() -> None:
    """Whether it comes before or after the rest; what finds ranges sees everything."""
    for parts in (MIXED, MIXED[::-1]):
        listening = Listening({"layer": [ROWS, CALLS, RANGE]}, honest=True)
        run(listening, *parts)
        assert measured(listening) == [2.0, 4.0]
        assert listening.measured_on_fitted() == []
        seen = listening.fulfilled()["layer", RANGE]
        assert seen.count == 4 * 2 * 4


def test_where_nothing_is_held_out_the_rest_must_do() -> None:
    """And it is told."""
    listening = Listening({"layer": [ROWS, CALLS, RANGE], "other": [ROWS]}, honest=True)
    run(listening, (1.0, False), (3.0, False))
    assert measured(listening) == [1.0, 3.0]
    assert listening.measured_on_fitted() == ["layer"]


def test_where_nothing_is_fitted_everything_is_measured_on() -> None:
    """There is nothing to be dishonest about."""
    listening = Listening({"layer": [ROWS, CALLS]}, honest=False)
    run(listening, *MIXED)
    assert measured(listening) == [1.0, 2.0, 3.0, 4.0]
    assert listening.measured_on_fitted() == []


def test_what_saw_nothing_is_not_fulfilled() -> None:
    """A layer that is never called, and one that is called without rows."""
    listening = Listening({"layer": [ROWS, RANGE], "never": [ROWS]}, honest=True)
    with listening.listening({"layer": nn.Linear(4, 3), "never": nn.Linear(4, 3)}):
        pass
    assert listening.fulfilled() == {}
    assert listening.measured_on_fitted() == []


def test_padding_is_not_measured_on() -> None:
    """Positions that an attention mask leaves out are no rows, where inputs have such positions."""
    listening, layer = Listening({"layer": [ROWS]}, honest=True), nn.Linear(4, 3)
    listening.counted = torch.tensor([[True, True, False], [True, False, False]])
    with listening.listening({"layer": layer}):
        layer(torch.arange(6.0).view(2, 3, 1).expand(2, 3, 4))
        layer(torch.full((5, 4), 9.0))
    rows: Tensor = listening.fulfilled()["layer", ROWS].result()
    assert sorted(rows[:, 0].tolist()) == [0, 1, 3, 9, 9, 9, 9, 9]


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_stays(fails: bool) -> None:
    """Also if the model failed."""
    layer = nn.Linear(4, 3)
    try:
        with Listening({"layer": [ROWS]}, honest=True).listening({"layer": layer}):
            assert len(layer._forward_pre_hooks) == 1
            layer(torch.ones(2, 5 if fails else 4))
    except RuntimeError:
        assert fails
    assert not layer._forward_pre_hooks


def test_calls_by_keyword_are_heard() -> None:
    """Inputs count however they are given."""
    listening, layer = Listening({"layer": [ROWS]}, honest=True), nn.Linear(4, 3)
    with listening.listening({"layer": layer}):
        layer(input=torch.ones(2, 4))
    assert len(listening.fulfilled()["layer", ROWS].result()) == 2
