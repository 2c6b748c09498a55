"""MomentCollector: whatever is shared, freed, written to or held out, every weight gets its own inputs' moments."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from monoquant.numerics.matrix_form import MatrixForm
from monoquant.statistics.collector import MomentCollector, RowStatistics, row_weights
from monoquant.statistics.watch import Block, RowOrder, WatchedWeight

COLUMNS = 4
NAMES = "abcd"


def watched(layer: str, rows: int = 6) -> WatchedWeight:
    return WatchedWeight(layer, "weight", torch.empty(rows, COLUMNS), MatrixForm.rows_first((rows, COLUMNS)))


def whole(layer: str, rows: int = 6) -> Block:
    return Block(layer, "weight", 0, rows)


def collector(*layers: str, diagonal: str = "") -> MomentCollector:
    """For some layers, of which some want the diagonal only."""
    full = {(layer, "weight"): layer not in diagonal for layer in layers}
    return MomentCollector(full, heard_at={layer: layer for layer in layers})


def finish(collector: MomentCollector, *layers: str) -> dict[str, list[RowStatistics]]:
    return {layer: found for (layer, _), found in collector.finish([watched(layer) for layer in layers]).items()}


def assert_are_of(found: RowStatistics, seen: list[Tensor], held: list[Tensor]) -> None:
    """Compare with rows that were written down one by one."""
    rows = torch.cat(seen) if seen else torch.empty(0, COLUMNS)
    assert found.moments.rows == len(rows)
    if len(rows):
        hessian = rows.T @ rows / len(rows)
        torch.testing.assert_close(found.moments.importance, hessian.diagonal())
        torch.testing.assert_close(found.moments.mean, rows.mean(0))
        if found.moments.full:
            torch.testing.assert_close(found.moments.hessian, hessian)
    kept = [] if found.moments.held_out is None else found.moments.held_out.tolist()
    assert sorted(kept) == sorted(torch.cat(held).tolist() if held else [])


actions = st.lists(
    st.one_of(
        st.tuples(st.just("new"), st.integers(0, 2)),
        st.tuples(st.just("view"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("part"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("write"), st.integers(0, 2)),
        st.tuples(st.just("hold out"), st.booleans()),
        st.just(("weigh",)),
        *[st.tuples(st.just("multiply"), st.integers(0, 3), st.integers(0, 2), st.booleans())] * 4,
    ),
    max_size=40,
)


@settings(max_examples=400)
@example(
    script=[("multiply", 0, 1, True), ("multiply", 1, 1, False), ("multiply", 0, 1, True), ("write", 1)],
    diagonal="",
    padded=False,
    weighed=True,
)
@given(script=actions, diagonal=st.sampled_from(("", "d", "cd")), padded=st.booleans(), weighed=st.booleans())
def test_every_weight_gets_the_moments_of_its_own_inputs(
    script: list[tuple[Any, ...]], diagonal: str, padded: bool, weighed: bool
) -> None:
    """Tensors are made where others were freed, seen through views, written to, multiplied with one weight or many.

    Rows that wait for weights, and never get any, count as others do.
    """
    collecting = collector(*NAMES, diagonal=diagonal)
    slots = [torch.zeros(3, COLUMNS) for _ in range(3)]
    seen: dict[bool, dict[str, list[Tensor]]] = {True: defaultdict(list), False: defaultdict(list)}
    used: list[str] = []
    mask = torch.tensor([[True, False, True]])
    collecting.counted, collecting.weighed = mask if padded else None, weighed
    for number, (action, *given_) in enumerate(script, 1):
        if action == "new":
            slots[given_[0]] = torch.empty(0)  # first freed, so that its memory may come back
            slots[given_[0]] = torch.full((3, COLUMNS), float(number)) + torch.arange(COLUMNS) * torch.tensor(
                [[1], [2], [0]]
            )
        elif action == "view":
            slots[given_[0]] = slots[given_[1]].view(slots[given_[1]].shape)
        elif action == "part":
            slots[given_[0]] = slots[given_[1]][1:] if len(slots[given_[1]]) > 1 else slots[given_[1]]
        elif action == "write":
            collecting.about_to_change(slots[given_[0]])
            slots[given_[0]].add_(number)
        elif action == "hold out":
            collecting.held_out = given_[0]
        elif action == "weigh":
            collecting.weigh({})
        else:
            layer, inputs = NAMES[given_[0]], slots[given_[1]]
            used.append(layer)
            counts = padded and len(inputs) == mask.numel()
            seen[collecting.held_out][layer].append(inputs[mask.flatten()] if counts else inputs.clone())
            collecting.receive(whole(layer), inputs, given_[2], RowOrder((1, len(inputs))))
    collecting.weigh({})
    found = finish(collecting, *NAMES)
    for layer in NAMES:
        assert len(found[layer]) == (layer in used)
        for one in found[layer]:
            assert (one.start, one.stop) == (0, 6)
            assert_are_of(one, seen[False][layer], seen[True][layer])


def test_weights_of_the_same_inputs_share_moments() -> None:
    """As long as they meet the very same tensors; only those who want as much."""
    collecting = collector(*"qkvs", diagonal="s")
    for value in (1.0, 2.0, 3.0):
        inputs = torch.full((5, COLUMNS), value)
        for layer in "qkvs":
            collecting.receive(whole(layer), inputs.view(5, COLUMNS), shared=True)
    found = {layer: one.moments for layer, (one,) in finish(collecting, *"qkvs").items()}
    assert found["q"] is found["k"] is found["v"]
    assert found["s"] is not found["q"]
    assert [found[layer].rows for layer in "qkvs"] == [15] * 4


def test_a_weight_parts_when_it_is_no_longer_called_with_the_same_inputs() -> None:
    """It keeps what it had in common; the others still share."""
    collecting = collector(*"qkv")
    first, second = torch.ones(5, COLUMNS), torch.full((5, COLUMNS), 2.0)
    for layer in "qkv":
        collecting.receive(whole(layer), first, shared=True)
    for layer in "qk":
        collecting.receive(whole(layer), second, shared=True)
    found = {layer: one.moments for layer, (one,) in finish(collecting, *"qkv").items()}
    assert found["q"] is found["k"] is not found["v"]
    assert (found["q"].rows, found["v"].rows) == (10, 5)
    assert float(found["v"].mean[0]) == 1
    assert float(found["q"].mean[0]) == 1.5


def test_who_has_seen_more_does_not_join() -> None:
    """A weight that comes later, with the inputs of one that was called before, has moments of its own."""
    collecting = collector(*"ab")
    collecting.receive(whole("a"), torch.ones(5, COLUMNS), shared=True)
    inputs = torch.full((5, COLUMNS), 2.0)
    for layer in "ab":
        collecting.receive(whole(layer), inputs, shared=True)
    found = {layer: one.moments for layer, (one,) in finish(collecting, *"ab").items()}
    assert (found["a"].rows, found["b"].rows) == (10, 5)


@pytest.mark.parametrize("order", ["hold first", "hold last"])
def test_held_out_inputs_are_not_shared_with_fitted_ones(order: str) -> None:
    """The same tensor, once held out and once not, counts once in each way."""
    collecting, inputs = collector("a"), torch.ones(5, COLUMNS)
    for held_out in (order == "hold first", order == "hold last"):
        collecting.held_out = held_out
        collecting.receive(whole("a"), inputs, shared=True)
    [found] = finish(collecting, "a")["a"]
    assert (found.moments.rows, len(found.moments.held_out)) == (5, 5)


def test_sharing_ends_where_one_is_held_out() -> None:
    """A tensor that is held out for one weight, and was not for another, is counted for each as it was meant."""
    collecting = collector(*"ab")
    inputs = torch.ones(5, COLUMNS)
    for layer in "ab":
        collecting.receive(whole(layer), inputs, shared=True)
    again = torch.full((5, COLUMNS), 2.0)
    collecting.receive(whole("a"), again, shared=True)
    collecting.held_out = True
    collecting.receive(whole("b"), again, shared=True)
    found = {layer: one.moments for layer, (one,) in finish(collecting, *"ab").items()}
    assert (found["a"].rows, found["b"].rows) == (10, 5)
    assert found["a"].held_out is None
    assert len(found["b"].held_out) == 5


def test_a_tensor_that_was_written_to_is_another_one() -> None:
    """Also if nobody told of it: torch counts the writes."""
    collecting = collector(*"ab")
    inputs = torch.ones(5, COLUMNS)
    collecting.receive(whole("a"), inputs, shared=True)
    inputs.add_(1)
    collecting.receive(whole("b"), inputs, shared=True)
    found = {layer: one.moments for layer, (one,) in finish(collecting, *"ab").items()}
    assert found["a"] is not found["b"]


def test_inference_tensors_are_counted() -> None:
    """They have no versions, so that nobody shares them, and every call counts."""
    collecting = collector(*"ab")
    with torch.inference_mode():
        inputs = torch.ones(5, COLUMNS)
        for layer in "aabb":
            collecting.receive(whole(layer), inputs, shared=True)
            collecting.about_to_change(inputs)
            inputs += 1
    found = finish(collecting, *"ab")
    assert [float(found[layer][0].moments.mean[0]) for layer in "ab"] == [1.5, 3.5]
    assert [found[layer][0].moments.rows for layer in "ab"] == [10, 10]


def weighed(*layers: str) -> MomentCollector:
    """A collector whose rows wait for weights."""
    collecting = collector(*layers)
    collecting.weighed = True
    return collecting


def mean_of(found: RowStatistics) -> float:
    return float(found.moments.mean[0])


def test_rows_count_by_the_norm_of_their_gradient() -> None:
    """Not by its square; in the order in which they were multiplied, over all calls since the last time."""
    collecting = weighed("a")
    for first, second in ((1.0, 3.0), (10.0, 30.0)):
        collecting.receive(whole("a"), torch.tensor([[first], [second]]).expand(2, COLUMNS), True, RowOrder((2,)))
    collecting.weigh({"a": [torch.tensor([1.0, 9.0]), torch.tensor([9.0, 1.0])]})
    collecting.receive(whole("a"), torch.full((4, COLUMNS), 2.0), True, RowOrder((4,)))
    collecting.weigh({"a": [torch.full((4,), 1e-6)]})
    [found] = finish(collecting, "a")["a"]
    assert found.moments.weighted
    assert found.moments.rows == 8
    # Weights are 1, 3, 3 and 1, halved to be one on average; small gradients everywhere make no difference.
    assert mean_of(found) == pytest.approx(((1 + 9 + 30 + 30) / 2 + 4 * 2) / 8)


TWO = torch.tensor([1.0, 9.0])


@pytest.mark.parametrize(
    "squares",
    [{}, {"b": [TWO, TWO]}, {"a": [TWO]}, {"a": [TWO.view(1, 2), TWO.view(1, 2)]}, {"a": [0 * TWO, 0 * TWO]}],
    ids=["none", "another layer", "another call", "another shape", "zero"],
)
def test_rows_count_alike_where_no_gradient_is_known(squares: dict[str, list[Tensor]]) -> None:
    """None at all, one of another layer, of other calls, of vectors in another shape, or one that is zero."""
    collecting = weighed("a")
    for value in (1.0, 2.0):
        rows = torch.tensor([[value], [3 * value]]).expand(2, COLUMNS)
        collecting.receive(whole("a"), rows, True, RowOrder((2,)))
    collecting.weigh(squares)
    [found] = finish(collecting, "a")["a"]
    assert (found.moments.rows, mean_of(found)) == (4, 3.0)


def test_rows_of_layers_that_share_inputs_count_for_all_of_them() -> None:
    """By all that they move, so that the layers still share."""
    collecting = weighed(*"ab")
    inputs = torch.tensor([[1.0], [3.0]]).expand(2, COLUMNS)
    for layer in "ab":
        collecting.receive(whole(layer), inputs, True, RowOrder((2,)))
    collecting.weigh({"a": [torch.tensor([1.0, 0.0])], "b": [torch.tensor([15.0, 1.0])]})
    found = {layer: one for layer, (one,) in finish(collecting, *"ab").items()}
    assert found["a"].moments is found["b"].moments
    assert mean_of(found["a"]) == pytest.approx((4 * 1 + 1 * 3) / 5)


def test_rows_that_wait_are_kept_by_layers_that_part() -> None:
    """Each weighs what they had in common by its own gradients."""
    collecting = weighed(*"ab")
    inputs = torch.tensor([[1.0], [3.0]]).expand(2, COLUMNS)
    for layer in "ab":
        collecting.receive(whole(layer), inputs, True, RowOrder((2,)))
    for layer, value in (("a", 5.0), ("b", 7.0)):
        collecting.receive(whole(layer), torch.full((1, COLUMNS), value), True, RowOrder((1,)))
    one = torch.ones(1)
    collecting.weigh({"a": [torch.tensor([1.0, 0.0]), one], "b": [torch.tensor([0.0, 1.0]), one]})
    found = {layer: one for layer, (one,) in finish(collecting, *"ab").items()}
    assert [found[layer].moments.rows for layer in "ab"] == [3, 3]
    assert mean_of(found["a"]) == pytest.approx((2 * 1 + 0 * 3 + 1 * 5) / 3)
    assert mean_of(found["b"]) == pytest.approx((0 * 1 + 2 * 3 + 1 * 7) / 3)


def test_held_out_rows_do_not_wait() -> None:
    """They are measured on, and every one counts alike."""
    collecting = weighed("a")
    collecting.held_out = True
    collecting.receive(whole("a"), torch.ones(3, COLUMNS), shared=True)
    collecting.weigh({"a": [torch.zeros(3)]})
    [found] = finish(collecting, "a")["a"]
    assert (found.moments.rows, len(found.moments.held_out)) == (0, 3)


def test_padding_takes_no_part_in_weighing() -> None:
    """What gradients it has is left out with it."""
    collecting = weighed("a")
    collecting.counted = torch.tensor([[True, True, False]])
    collecting.receive(whole("a"), torch.tensor([[1.0], [2.0], [100.0]]).expand(3, COLUMNS), True, RowOrder((1, 3)))
    collecting.weigh({"a": [torch.tensor([[1.0, 9.0, 1e12]])]})
    [found] = finish(collecting, "a")["a"]
    assert found.moments.rows == 2
    assert mean_of(found) == pytest.approx((1 * 1 + 3 * 2) / 4)


def test_rows_of_a_run_that_failed_are_forgotten() -> None:
    """Those that wait as well as those that came last; layers that share go on sharing."""
    collecting = weighed(*"ab")
    for value in (1.0, 2.0):
        inputs = torch.full((2, COLUMNS), value)
        for layer in "ab":
            collecting.receive(whole(layer), inputs, True, RowOrder((2,)))
    collecting.forget()
    collecting.weighed = False
    again = torch.full((2, COLUMNS), 5.0)
    for layer in "ab":
        collecting.receive(whole(layer), again, True, RowOrder((2,)))
    collecting.weighed = True
    last = torch.full((2, COLUMNS), 7.0)
    for layer in "ab":
        collecting.receive(whole(layer), last, True, RowOrder((2,)))
    collecting.weigh({"a": [torch.ones(2)]})
    found = {layer: one for layer, (one,) in finish(collecting, *"ab").items()}
    assert found["a"].moments is found["b"].moments
    assert (found["a"].moments.rows, mean_of(found["a"])) == (4, 6.0)


def of_one_wave(*layers: str, wave: str) -> MomentCollector:
    """A collector for some layers, of which some are in the wave."""
    full = {(layer, "weight"): True for layer in layers}
    return MomentCollector(full, [(layer, "weight") for layer in wave])


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("wave", ["ac", "bc"])
def test_sums_are_kept_for_the_layers_of_a_wave(wave: str, weighed: bool) -> None:
    """Whoever of those that share comes first; for the others, sums would only fill memory."""
    collecting = of_one_wave(*"abcd", wave=wave)
    collecting.weighed = weighed
    inputs = torch.ones(5, COLUMNS)
    for layer in "ab":
        collecting.receive(whole(layer), inputs, shared=True)
    for layer in "cd":
        collecting.receive(whole(layer), torch.ones(3, COLUMNS), shared=False)
    collecting.weigh({})
    rows = {layer: one.moments.rows for layer, (one,) in finish(collecting, *"abcd").items()}
    assert rows == {"a": 5, "b": 5, "c": 3, "d": 0}


def test_a_layer_of_another_wave_that_parts_takes_no_sums_along() -> None:
    """A copy of what it had in common would fill memory; the layer of this wave keeps all of it."""
    collecting = of_one_wave(*"ab", wave="a")
    inputs = torch.ones(5, COLUMNS)
    for layer in "ab":
        collecting.receive(whole(layer), inputs, shared=True)
    for layer in "ab":
        collecting.receive(whole(layer), torch.ones(2, COLUMNS), shared=True)
    assert {layer: one.moments.rows for layer, (one,) in finish(collecting, *"ab").items()} == {"a": 7, "b": 0}


@given(squares=st.lists(st.floats(0, 1e20), min_size=1, max_size=20))
def test_weights_are_one_on_average(squares: list[float]) -> None:
    """And in proportion to the root of what they are made of; where nothing is known, all ones."""
    found = row_weights(torch.tensor(squares))
    assert found.dtype == torch.float32
    assert float(found.mean()) == pytest.approx(1, rel=1e-3)
    roots = torch.tensor(squares).sqrt()
    if float(roots.sum()) > 1e-15:
        torch.testing.assert_close(found, roots / roots.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("squares", [[float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_weights_of_nonsense_are_ones(squares: list[float]) -> None:
    """A gradient that overflowed says nothing."""
    assert row_weights(torch.tensor(squares)).tolist() == [1.0, 1.0]


def test_parts_of_a_weight_are_cut_at_each_others_ends() -> None:
    """A row has met the inputs of every product it took part in; rows in none are in none."""
    collecting = MomentCollector({("a", "weight"): True})
    for start, stop, value in ((0, 4, 1.0), (2, 6, 2.0), (8, 10, 3.0)):
        collecting.receive(Block("a", "weight", start, stop), torch.full((2, COLUMNS), value), shared=True)
    parts = collecting.finish([watched("a", rows=12)])["a", "weight"]
    found = [(part.start, part.stop, part.moments.rows, float(part.moments.mean[0])) for part in parts]
    assert found == [(0, 2, 2, 1.0), (2, 4, 4, 1.5), (4, 6, 2, 2.0), (8, 10, 2, 3.0)]


def test_few_tensors_are_kept_alive() -> None:
    """However many weights there are, no more than some inputs are held on to."""
    layers = [str(number) for number in range(30)]
    collecting = collector(*layers)
    for layer in layers:
        collecting.receive(whole(layer), torch.ones(5, COLUMNS), shared=True)
        held = [one for one in collecting._inputs.values() if one.pending is not None]
        assert len(held) <= 4
    assert all(one[0].moments.rows == 5 for one in finish(collecting, *layers).values())


def test_inputs_of_one_weight_alone_are_not_kept() -> None:
    """Patches of a convolution are counted at once: nobody else will be given them."""
    collecting = collector("a")
    collecting.receive(whole("a"), torch.ones(5, COLUMNS), shared=False)
    assert all(one.pending is None for one in collecting._inputs.values())
