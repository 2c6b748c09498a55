"""Which vectors the rows of a product are: as modules multiply them, and as masks and weights are laid over them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.algorithms.gptq import Gptq
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.statistics.collector import MomentCollector, RowStatistics
from monoquant.statistics.watch import Block, ProductWatch, RowOrder, WatchedWeight

FEATURES = 64


Told = list[tuple[str, Tensor, RowOrder | None]]


class Listener:
    """Writes down what it is told of each product: the weight, its inputs, and which vectors they are."""

    def __init__(self) -> None:
        self.told: Told = []

    def receive(self, block: Block, inputs: Tensor, shared: bool, order: RowOrder | None = None) -> None:
        self.told.append((block.weight, inputs.clone(), order))

    def about_to_change(self, tensor: Tensor) -> None:
        pass


def watched(model: nn.Module, *args: Any, **kwargs: Any) -> Told:
    """What is told while a model is called, of weights as a calibration would watch them."""
    found: list[WatchedWeight] = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            found.extend(context.watched_weights())

    calibration = mq.CalibrationPass([[torch.ones(1)]], forward=lambda *_: None)
    pack = mq.Int4PackPass(32, algorithm=Gptq(weigh_rows=False))
    mq.Quantizer([mq.SkipSelectionPass(), calibration, pack, Peek()]).run(model.eval())
    listener = Listener()
    watch = ProductWatch(found, listener)
    with torch.no_grad(), watch.watching(model.modules()):
        model(*args, **kwargs)
    return listener.told


def numbered(*shape: int) -> Tensor:
    """Vectors whose first feature is their number."""
    x = torch.randn(*shape, FEATURES)
    x[..., 0] = torch.arange(float(x[..., 0].numel())).view(shape)
    return x


def attention(batch_first: bool) -> nn.Module:
    return nn.MultiheadAttention(FEATURES, 4, batch_first=batch_first)


def recurrent(kind: type[nn.RNNBase], batch_first: bool) -> nn.Module:
    return kind(FEATURES, 32, batch_first=batch_first, bidirectional=True)


MODULES: dict[str, tuple[nn.Module, set[str]]] = {
    "Linear": (nn.Linear(FEATURES, 48), {"weight"}),
    "attention, samples first": (attention(True), {"in_proj_weight"}),
    "attention, positions first": (attention(False), {"in_proj_weight"}),
    **{
        f"{kind.__name__}, {'samples' if first else 'steps'} first": (
            recurrent(kind, first),
            {"weight_ih_l0", "weight_ih_l0_reverse"},
        )
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
        for first in (True, False)
    },
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("shape", [(3, 5), (5,), (1, 4), (4, 1)], ids=str)
def test_the_order_of_rows_is_the_one_in_which_they_are_multiplied(kind: str, shape: tuple[int, ...]) -> None:
    """One value per vector, put into that order, meets its vector; with one axis of vectors, too."""
    module, expected = MODULES[kind]
    x = numbered(*shape)
    given_ = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    found = set()
    for weight, inputs, order in watched(module, *given_):
        if weight in expected:
            found.add(weight)
            assert order is not None
            assert order.shape == shape
            assert torch.equal(order.arrange(x[..., 0]), inputs[:, 0])
    assert found == expected


@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4)], ids=str)
def test_a_call_by_keyword_has_an_order_too(shape: tuple[int, ...]) -> None:
    """The first argument is the input, however it is given."""
    [(_, inputs, order)] = watched(nn.Linear(FEATURES, 48), input=numbered(*shape))
    assert order == RowOrder(shape)
    assert inputs[:, 0].tolist() == list(range(len(inputs)))


def test_other_rows_than_those_of_the_first_argument_have_no_order() -> None:
    """Keys and values of another length are not the queries that the call begins with."""
    query, memory = numbered(3, 5), numbered(3, 7)
    orders = {len(inputs): order for name, inputs, order in watched(attention(True), query, memory, memory) if name}
    assert orders == {15: RowOrder((3, 5), swapped=True), 21: None}


@pytest.mark.parametrize("batch_first", [True, False])
def test_hidden_states_belong_to_the_steps_that_they_go_into(batch_first: bool) -> None:
    """A fused LSTM multiplies them all at once, in both directions; the state behind a step is no input of it."""
    lstm, x = recurrent(nn.LSTM, batch_first).eval(), numbered(3, 6)
    with torch.no_grad():
        states = (lstm(x)[0] if batch_first else lstm(x)[0].transpose(0, 1)).unflatten(-1, (2, 32))
    zero = torch.zeros(len(states), 1, 32)
    expected = {
        "weight_hh_l0": torch.cat([zero, states[:, :-1, 0]], 1),
        "weight_hh_l0_reverse": torch.cat([states[:, 1:, 1], zero], 1),
    }
    told = {name: (inputs, order) for name, inputs, order in watched(lstm, x) if name in expected}
    assert list(told) == list(expected)
    for name, (inputs, order) in told.items():
        assert order == RowOrder((3, 6), swapped=batch_first)
        rows = expected[name].transpose(0, 1).flatten(0, 1)
        torch.testing.assert_close(inputs, rows)


def test_hidden_states_of_single_steps_have_no_order() -> None:
    """A GRU multiplies them step by step, and nobody counts the steps."""
    told = watched(nn.GRU(FEATURES, 32), numbered(6, 3))
    assert [order for name, _, order in told if name.startswith("weight_hh")] == [None] * 6


def test_packed_sequences_have_no_order() -> None:
    """They are no tensor, and hold no padding."""
    packed = nn.utils.rnn.pack_padded_sequence(numbered(3, 6), torch.tensor([6, 4, 1]), batch_first=True)
    told = watched(nn.GRU(FEATURES, 32, batch_first=True), packed)
    assert {order for _, _, order in told} == {None}


def test_modules_without_an_order_have_none() -> None:
    """A convolution multiplies patches, and a bare weight what its module makes of the arguments."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(48, FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            return x.flip(0) @ self.matrix.T

    assert [order for _, _, order in watched(nn.Conv1d(FEATURES, 48, 1), numbered(3, 5).mT)] == [None] * 3
    assert [order for _, _, order in watched(Bare(), numbered(3))] == [None]


COLUMNS = 4


def collector(*layers: str, heard_at: dict[str, str] | None = None) -> MomentCollector:
    full = {(layer, "weight"): True for layer in layers}
    return MomentCollector(full, heard_at=heard_at or {layer: layer for layer in layers})


def receive(collecting: MomentCollector, layer: str, inputs: Tensor, order: RowOrder | None) -> None:
    collecting.receive(Block(layer, "weight", 0, 6), inputs, True, order)


def finish(collecting: MomentCollector, layer: str) -> RowStatistics:
    weight = WatchedWeight(layer, "weight", torch.empty(6, COLUMNS), MatrixForm.rows_first((6, COLUMNS)))
    [found] = collecting.finish([weight])[layer, "weight"]
    return found


def of_values(values: Tensor) -> Tensor:
    """Rows of such values."""
    return values[:, None].expand(len(values), COLUMNS).clone()


@given(samples=st.integers(1, 4), positions=st.integers(1, 5), swapped=st.booleans(), data=st.data())
def test_masks_and_weights_meet_their_rows(samples: int, positions: int, swapped: bool, data: Any) -> None:
    """Whichever axis comes first in the product, padding is left out, and the others count by their own gradients."""
    count = samples * positions
    values = torch.arange(1.0, count + 1).view(samples, positions)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))).view(samples, positions)
    mask[0, 0] = True
    squares = torch.tensor(data.draw(st.lists(st.integers(1, 100), min_size=count, max_size=count))).view(mask.shape)
    squares = squares.float().square()
    collecting = collector("a")
    collecting.counted, collecting.weighed = mask, True
    in_order = values.T.flatten() if swapped else values.flatten()
    receive(collecting, "a", of_values(in_order), RowOrder((samples, positions), swapped))
    collecting.weigh({"a": [squares]})
    found = finish(collecting, "a").moments
    expected = (values[mask] * squares[mask].sqrt()).sum() / squares[mask].sqrt().sum()
    assert found.rows == int(mask.sum())
    assert float(found.mean[0]) == pytest.approx(float(expected), rel=1e-4)
    assert collecting.maybe_padded == set()


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (RowOrder((2, 3)), False),
        (RowOrder((3, 2)), True),
        (RowOrder((6,)), True),
        (RowOrder((1, 2, 3)), True),
        (None, True),
    ],
    ids=str,
)
def test_a_mask_of_another_shape_is_not_applied(order: RowOrder | None, told: bool) -> None:
    """As many rows in another order are not the mask's; all count, and the layer is named."""
    collecting = collector("a")
    collecting.counted = torch.tensor([[True, True, False], [True, True, True]])
    receive(collecting, "a", of_values(torch.arange(6.0)), order)
    assert collecting.maybe_padded == ({"a"} if told else set())
    assert finish(collecting, "a").moments.rows == (6 if told else 5)


def test_other_numbers_of_rows_are_no_padding() -> None:
    """What is pooled, or looked at in part, has no row for each position."""
    collecting = collector("a")
    collecting.counted = torch.tensor([[True, True, False], [True, True, True]])
    receive(collecting, "a", of_values(torch.arange(2.0)), RowOrder((2,)))
    receive(collecting, "a", of_values(torch.arange(5.0)), None)
    assert collecting.maybe_padded == set()
    assert finish(collecting, "a").moments.rows == 7


def test_who_tells_of_other_vectors_takes_the_weights_from_all() -> None:
    """Of two layers that share rows, one's output is of another shape: nobody knows how much rows matter to it."""
    collecting = collector(*"ab")
    collecting.weighed = True
    inputs = of_values(torch.tensor([1.0, 3.0]))
    for layer in "ab":
        receive(collecting, layer, inputs, RowOrder((2,)))
    collecting.weigh({"a": [torch.tensor([1.0, 9.0])], "b": [torch.ones(1, 2)]})
    assert float(finish(collecting, "a").moments.mean[0]) == 2
    assert not finish(collecting, "a").moments.weighted


@pytest.mark.parametrize("calls", [1, 3])
def test_who_tells_of_another_number_of_calls_is_not_listened_to(calls: int) -> None:
    """Nobody knows which call is which; who tells of all of them is believed."""
    collecting = collector(*"ab")
    collecting.weighed = True
    for value in (1.0, 10.0):
        inputs = of_values(torch.tensor([value, 3 * value]))
        for layer in "ab":
            receive(collecting, layer, inputs, RowOrder((2,)))
    told, others = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    collecting.weigh({"a": [told, told], "b": [others] * calls})
    assert float(finish(collecting, "a").moments.mean[0]) == pytest.approx((2 * 1 + 2 * 10) / 4)


def test_gradients_are_those_of_the_module_that_is_heard() -> None:
    """A weight that its owner multiplies is weighed by the owner's output, once for all weights that share rows."""
    collecting = collector(*"abcd", heard_at={"a": "owner", "b": "owner", "c": "c"})
    collecting.weighed = True
    inputs = of_values(torch.tensor([1.0, 3.0]))
    for layer in "abcd":
        receive(collecting, layer, inputs, RowOrder((2,)))
    of_others = torch.tensor([100.0, 0.0])
    told = {"owner": torch.tensor([9.0, 0.0]), "c": torch.tensor([0.0, 16.0]), "a": of_others, "d": of_others}
    collecting.weigh({name: [squares] for name, squares in told.items()})
    for layer in "ad":
        assert float(finish(collecting, layer).moments.mean[0]) == pytest.approx((3 * 1 + 4 * 3) / 7)


def test_rows_are_shared_only_in_the_same_order() -> None:
    """The very same tensor, of which one layer says what its rows are and another does not."""
    collecting = collector(*"ab")
    collecting.counted = torch.tensor([[True, True, False], [True, True, True]])
    inputs = of_values(torch.arange(6.0))
    receive(collecting, "a", inputs, RowOrder((2, 3)))
    receive(collecting, "b", inputs, None)
    assert [finish(collecting, layer).moments.rows for layer in "ab"] == [5, 6]
    assert collecting.maybe_padded == {"b"}


def test_rows_are_shared_only_under_the_same_mask() -> None:
    """A tensor that stays the same from one batch to the next is masked by the mask of each."""
    collecting = collector(*"ab")
    inputs = of_values(torch.arange(6.0))
    for layer, masked in (("a", 1), ("b", 3)):
        collecting.counted = torch.arange(6).view(2, 3) >= masked
        receive(collecting, layer, inputs, RowOrder((2, 3)))
    assert [finish(collecting, layer).moments.rows for layer in "ab"] == [5, 3]


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_output_projection_is_weighed_by_what_attention_returns(batch_first: bool) -> None:
    """Only the first position moves the answer: its rows are all that counts, wherever they stand in the product."""
    layer = attention(batch_first)
    x = torch.randn(12, 8, FEATURES)
    with torch.no_grad():
        layer.in_proj_weight.mul_(3)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            answer = self.layer(x, x, x, need_weights=False)[0]
            return answer[:, 0] if batch_first else answer[0]

    found = {}

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            for one in context.watched_weights():
                [found[one.layer]] = context.input_statistics(one.layer, one.name)

    data = x if batch_first else x.transpose(0, 1)
    calibration = mq.CalibrationPass([data], forward=lambda model, batch: model(batch))
    steps = [mq.SkipSelectionPass(), calibration, mq.Int4PackPass(32, algorithm=Gptq()), Peek()]
    mq.Quantizer(steps).run(First().eval())
    mixed = copy.deepcopy(layer)
    with torch.no_grad():
        mixed.out_proj.weight.copy_(torch.eye(FEATURES))
        mixed.out_proj.bias.zero_()
        heads = mixed(data, data, data, need_weights=False)[0]
    first = heads[:, 0] if batch_first else heads[0]
    assert found["layer.out_proj"].moments.weighted
    norms = first.square().mean(0)
    measured = found["layer.out_proj"].moments.importance
    others = (heads[:, 1:] if batch_first else heads[1:]).flatten(0, 1).square().mean(0)
    assert float((measured - norms).abs().mean()) < 0.5 * float((measured - others).abs().mean())
    assert not found["layer"].moments.weighted
