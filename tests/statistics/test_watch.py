"""ProductWatch: inputs of weights, whatever code multiplies them, against rows that the tests compute themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import monoquant as mq
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.statistics.collector import RowStatistics
from monoquant.statistics.watch import Block, ProductWatch, WatchedWeight

Found = dict[tuple[str, str], list[RowStatistics]]
Collect = Callable[..., Found]
Check = Callable[[RowStatistics, Tensor], None]

FEATURES = 64


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Whatever weights torch draws, they are the same ones in every run."""
    torch.manual_seed(0)


def rows(count: int = 40, features: int = FEATURES, seed: int = 0) -> Tensor:
    """Rows with a mean and with correlations, so that no two sets of them have the same moments."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, features, generator=generator)
    return torch.randn(count, 8, generator=generator) @ mixing + torch.randn(features, generator=generator)


class OneWeight(nn.Module):
    """A matrix, multiplied as each test says."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(shape or (48, FEATURES), generator=torch.Generator().manual_seed(9)))
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.matrix)


WAYS: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
    ("linear", functional.linear),
    ("linear with a bias", lambda x, w: functional.linear(x, w, torch.ones(48))),
    ("linear of three axes", lambda x, w: functional.linear(x.view(4, 10, FEATURES), w)),
    ("linear of one row", lambda x, w: torch.stack([functional.linear(row, w) for row in x])),
    ("matmul", lambda x, w: x @ w.T),
    ("matmul of three axes", lambda x, w: x.view(4, 10, FEATURES) @ w.T),
    ("weight first", lambda x, w: w @ x.T),
    ("vectors", lambda x, w: torch.stack([w @ row for row in x])),
    ("mv", lambda x, w: torch.stack([torch.mv(w, row) for row in x])),
    ("addmm", lambda x, w: torch.addmm(torch.zeros(48), x, w.t())),
    ("addmv", lambda x, w: torch.stack([torch.addmv(torch.zeros(48), w, row) for row in x])),
    ("baddbmm", lambda x, w: torch.baddbmm(torch.zeros(1, 1, 48), x[None], w.t()[None])),
    ("bmm", lambda x, w: torch.bmm(x.view(4, 10, FEATURES), w.t().expand(4, FEATURES, 48))),
    ("einsum", lambda x, w: torch.einsum("nk,ok->no", x, w)),
    ("einsum of three axes", lambda x, w: torch.einsum("ank,ok->ano", x.view(4, 10, FEATURES), w)),
    ("tensordot", lambda x, w: torch.tensordot(x, w, ([1], [1]))),
    ("in parts", lambda x, w: torch.cat([functional.linear(x, part) for part in w.chunk(3)], 1)),
    ("a view of it", lambda x, w: functional.linear(x, w.view(48, 8, 8).flatten(1))),
    ("detached", lambda x, w: functional.linear(x, w.detach())),
    ("data", lambda x, w: functional.linear(x, w.data)),
    ("in another dtype", lambda x, w: functional.linear(x.double(), w.double())),
    ("a clone", lambda x, w: functional.linear(x, w.clone())),
    ("without gradients", torch.no_grad()(functional.linear)),
    ("with gradients", torch.enable_grad()(functional.linear)),
]


@pytest.mark.parametrize("multiply", [way for _, way in WAYS], ids=[name for name, _ in WAYS])
@pytest.mark.parametrize("full", [True, False])
def test_a_weight_is_known_however_it_is_multiplied(
    collect: Collect, assert_moments: Check, multiply: Callable[[Tensor, Tensor], Tensor], full: bool
) -> None:
    """All rows of the weight have met all rows of the inputs."""
    x = rows()
    parts = collect(OneWeight(multiply), x, full=full)["", "matrix"]
    ends = [0, *(part.stop for part in parts)]
    assert [part.start for part in parts] == ends[:-1]
    assert ends[-1] == 48
    for part in parts:
        assert_moments(part, x)


def test_rows_that_take_no_part_are_in_none(collect: Collect, assert_moments: Check) -> None:
    """A forward that uses some rows of a weight teaches nothing of the others."""
    x = rows()
    [first, last] = collect(
        OneWeight(lambda x, w: functional.linear(x, w[:10]).sum() + functional.linear(2 * x, w[30:]).sum()), x
    )["", "matrix"]
    assert (first.start, first.stop, last.start, last.stop) == (0, 10, 30, 48)
    assert_moments(first, x)
    assert_moments(last, 2 * x)


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x, w: functional.linear(x[:, :32], w[:, :32]),
        lambda x, w: functional.linear(x, w[::2]),
        lambda x, w: functional.linear(x, w.flip(0)),
        lambda x, w: functional.linear(x, w * 2),
        lambda x, w: x * w[:40],
        lambda x, w: functional.linear(x[:, :48], w.T),
    ],
    ids=["some columns", "every second row", "reversed", "scaled", "elementwise", "transposed"],
)
def test_what_is_not_a_product_with_its_rows_is_not_taken_for_one(
    collect: Collect, multiply: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Better to know nothing than something wrong."""
    assert list(collect(OneWeight(multiply), rows())["", "matrix"]) == []


def test_a_square_weight_is_not_mistaken_for_its_transpose(collect: Collect, assert_moments: Check) -> None:
    """Where both factors would fit, it is the rows of the matrix that tell."""
    x = rows()
    assert collect(OneWeight(lambda x, w: x @ w, FEATURES, FEATURES), x)["", "matrix"] == []
    [part] = collect(OneWeight(lambda x, w: x @ w.T, FEATURES, FEATURES), x)["", "matrix"]
    assert_moments(part, x)


def test_weights_that_meet_each_other_are_both_seen(collect: Collect, assert_moments: Check) -> None:
    """In a product of two weights, as of low-rank factors, each is the other's input."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.randn(48, 64)), nn.Parameter(torch.randn(40, 64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.up @ self.down.T)

    model = Factors()
    found = collect(model, rows(features=48))
    assert_moments(found["", "up"][0], model.down.detach())
    assert_moments(found["", "down"][0], model.up.detach())


def test_experts_meet_inputs_of_their_own(collect: Collect, assert_moments: Check) -> None:
    """Items of a stack, one by one or in a batched product; one that is never asked is in none."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 48, FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([functional.linear(x * (i + 1), self.up[i]) for i in (0, 1, 3)])

    class Batched(Experts):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(torch.stack([x, 2 * x, 3 * x, 4 * x]), self.up.transpose(1, 2))

    x = rows()
    parts = collect(Experts(), x)["", "up"]
    assert [(part.start, part.stop) for part in parts] == [(0, 48), (48, 96), (144, 192)]
    for part, factor in zip(parts, (1, 2, 4), strict=True):
        assert_moments(part, factor * x)
    parts = collect(Batched(), x)["", "up"]
    assert [part.start for part in parts] == [0, 48, 96, 144]
    for part, factor in zip(parts, (1, 2, 3, 4), strict=True):
        assert_moments(part, factor * x)


class TwoLayers(nn.Module):
    """Two Linears that each test calls in its own way."""

    def __init__(self, run: Callable[[nn.Linear, nn.Linear, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 48), nn.Linear(FEATURES, 32)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.a, self.b, x)


def in_place_after(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.mul_(3)
    b(h)


def in_place_through_a_view(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.view(-1)[:].mul_(3)
    b(h)


def in_place_by_data(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.data.mul_(3)
    b(h)


def in_place_by_out(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    torch.mul(h, 3, out=h)
    b(h)


def in_place_by_index(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h[:, :] = 3 * x
    b(h)


def in_place_by_copy(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    h.copy_(3 * x)
    b(h)


def reused_buffer(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    buffer = torch.empty_like(x)
    torch.add(x, 0, out=buffer)
    a(buffer)
    torch.mul(x, 3, out=buffer)
    b(buffer)


def in_place_by_an_activation(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    functional.threshold(h, float(x.max()) + 1, 0.0, inplace=True)
    h.add_(x).add_(2 * x)
    b(h)


def in_place_in_a_list(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
    h = x.clone()
    a(h)
    torch._foreach_mul_([h], 3)
    b(h)


@pytest.mark.parametrize(
    "run",
    [
        in_place_after,
        in_place_through_a_view,
        in_place_by_data,
        in_place_by_out,
        in_place_by_index,
        in_place_by_copy,
        reused_buffer,
        in_place_by_an_activation,
        in_place_in_a_list,
    ],
)
def test_inputs_that_are_written_to_later_are_counted_as_they_were(
    collect: Collect, assert_moments: Check, run: Callable[[nn.Linear, nn.Linear, Tensor], None]
) -> None:
    """However the writing is done, and although both layers are given the same memory."""
    x, y = rows(), rows(seed=1)
    found = collect(TwoLayers(run), x, y)
    for layer, factor in (("a", 1), ("b", 3)):
        [part] = found[layer, "weight"]
        assert_moments(part, factor * torch.cat([x, y]))
    assert found["a", "weight"][0].moments is not found["b", "weight"][0].moments


@pytest.mark.parametrize("size", [1, 40, 4000])
def test_freed_memory_never_merges_inputs(collect: Collect, assert_moments: Check, size: int) -> None:
    """An allocator gives a freed input's address to the next one, of the same shape and version."""
    addresses: list[list[int]] = []

    def run(a: nn.Linear, b: nn.Linear, x: Tensor) -> None:
        used = []
        for layer, factor in ((a, 1), (b, 2)):
            h = x * factor
            used.append(h.data_ptr())
            layer(h)
            del h
        addresses.append(used)

    batches = [rows(size, seed=seed) for seed in range(6)]
    found = collect(TwoLayers(run), *batches)
    for layer, factor in (("a", 1), ("b", 2)):
        [part] = found[layer, "weight"]
        assert_moments(part, factor * torch.cat(batches))
    assert found["a", "weight"][0].moments is not found["b", "weight"][0].moments
    assert len(addresses) == 6


def test_freed_memory_never_merges_inputs_of_many_layers(collect: Collect, assert_moments: Check) -> None:
    """Nor when more tensors came between than are kept alive."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(FEATURES, 16) for _ in range(12))

        def forward(self, x: Tensor) -> None:
            for factor, layer in enumerate(self.layers, 1):
                layer(x * factor)

    batches = [rows(seed=seed) for seed in range(3)]
    found = collect(Many(), *batches)
    for factor in range(1, 13):
        [part] = found[f"layers.{factor - 1}", "weight"]
        assert_moments(part, factor * torch.cat(batches))


class Attention(nn.Module):
    """Query, key and value of one tensor; for the second call a memory may be given, as in cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(FEATURES, FEATURES) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        other = x if memory is None else memory
        q, k, v = self.q(x), self.k(other), self.v(other)
        return self.o(torch.softmax(q @ k.mT / 8, -1) @ v)


def test_layers_that_share_an_input_share_its_moments(collect: Collect, assert_moments: Check) -> None:
    """Query, key and value are one Hessian, to be kept and factored once; the output projection has another."""
    batches = [rows(seed=seed).view(4, 10, FEATURES) for seed in range(3)]
    found = {layer: parts[0] for (layer, _), parts in collect(Attention(), *batches).items()}
    assert found["q"].moments is found["k"].moments is found["v"].moments is not found["o"].moments
    assert_moments(found["q"], torch.cat(batches))


def test_layers_part_when_they_no_longer_share_an_input(collect: Collect, assert_moments: Check) -> None:
    """From then on each counts its own; what they had in common stays in both."""
    x, memory, last = rows(), rows(30, seed=1), rows(seed=2)
    found = {layer: parts[0] for (layer, _), parts in collect(Attention(), x, (x, memory), last).items()}
    assert found["k"].moments is not found["q"].moments
    assert_moments(found["q"], torch.cat([x, x, last]))
    for layer in "kv":
        assert_moments(found[layer], torch.cat([x, memory, last]))


def test_one_of_three_may_be_left_out(collect: Collect, assert_moments: Check) -> None:
    """A layer that is not called for some batches counts those it was called for."""

    class Sometimes(Attention):
        def forward(self, x: Tensor, memory: Tensor | None = None) -> Any:
            return (self.q(x), self.k(x), self.v(x) if memory is None else None)

    x, y = rows(), rows(seed=1)
    for calls in ([x, (y, y)], [(x, x), y]):
        found = {layer: parts[0] for (layer, _), parts in collect(Sometimes(), *calls).items() if parts}
        assert_moments(found["q"], torch.cat([x, y]))
        assert_moments(found["k"], torch.cat([x, y]))
        assert_moments(found["v"], x if calls[0] is x else y)


def test_autocast_copies_are_followed(collect: Collect, assert_moments: Check) -> None:
    """Weights that autocast copies to bfloat16, and keeps copies of, meet inputs in bfloat16."""
    x, y = rows(), rows(seed=1)
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 32))

    def run(model: nn.Module, calls: Any) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for call in calls:
                model(call)

    found = collect(model, x, y, run=run)
    both = torch.cat([x, y]).bfloat16()
    assert_moments(found["0", "weight"][0], both)
    with torch.no_grad():
        hidden = torch.relu(functional.linear(both, model[0].weight.bfloat16(), model[0].bias.bfloat16()))
    assert_moments(found["2", "weight"][0], hidden)


def test_copies_that_are_gone_mean_nothing(collect: Collect, assert_moments: Check) -> None:
    """A copy of a weight leaves memory behind, which is not taken for the weight when something else lies there."""

    def run(x: Tensor, w: Tensor) -> None:
        for _ in range(20):
            functional.linear(x, w.clone())
            others = [torch.full_like(w, 2.0) for _ in range(5)]  # one of them likely where the copy was
            for other in others:
                functional.linear(3 * x, other)

    x = rows()
    [part] = collect(OneWeight(run), x)["", "matrix"]
    assert_moments(part, x.repeat(20, 1))


@pytest.mark.parametrize("decorate", [torch.inference_mode(), torch.no_grad(), torch.enable_grad()])
def test_any_mode_of_gradients_will_do(collect: Collect, assert_moments: Check, decorate: Any) -> None:
    """A forward may choose its own."""

    class Own(nn.Sequential):
        @decorate
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.relu(self[0](x)))

    model, x, y = Own(nn.Linear(FEATURES, 48), nn.Linear(48, 32)), rows(), rows(seed=1)
    found = collect(model, x, y)
    assert_moments(found["0", "weight"][0], torch.cat([x, y]))
    with torch.no_grad():
        assert_moments(found["1", "weight"][0], torch.relu(model[0](torch.cat([x, y]))))


def test_a_run_in_inference_mode_collects_the_same(collect: Collect, assert_moments: Check) -> None:
    """As people wrap everything in it that is no training."""
    x = rows()
    with torch.inference_mode():
        [part] = collect(nn.Sequential(nn.Linear(FEATURES, 48)), x)["0", "weight"]
    assert_moments(part, x)


CONVOLUTIONS = [
    nn.Conv1d(16, 24, 4, stride=2, padding=1),
    nn.Conv1d(16, 24, 3, dilation=2, groups=2),
    nn.Conv2d(16, 24, (2, 3), stride=(2, 1), padding=(0, 1), groups=4),
    nn.Conv2d(16, 24, 3, padding="same", padding_mode="circular"),
    nn.Conv3d(8, 12, 2),
    nn.ConvTranspose1d(16, 24, 4, stride=2, groups=2, output_padding=1),
    nn.ConvTranspose2d(16, 24, (2, 4), stride=3, padding=1, output_padding=(1, 2)),
    nn.ConvTranspose3d(8, 12, 2, stride=2, groups=2, dilation=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_energies_of_outputs_follow_from_moments(collect: Collect, layer: nn.Module, batched: bool) -> None:
    """For any weight ``W``, each row of it makes outputs of energy ``w H w^T`` and mean ``w E[x]``."""
    generator = torch.Generator().manual_seed(0)
    dims = layer.weight.dim() - 2
    x = torch.randn(*([3] if batched else []), layer.in_channels, *[7, 6, 5][:dims], generator=generator) + 0.3
    parts = collect(layer, x)["", "weight"]
    form = MatrixForm.rows_first(layer.weight.shape)
    if layer.transposed:
        form = MatrixForm.transposed_convolution(layer.weight.shape, layer.groups)
    other = torch.randn(layer.weight.shape, generator=generator)
    with torch.no_grad():
        before = layer.weight.clone()
        layer.weight.copy_(other)
        answer = (layer(x) - layer.bias.view(-1, *[1] * dims)).movedim(-dims - 1, 0).flatten(1).double()
        layer.weight.copy_(before)
    matrix = form.to_matrix(other).double()
    assert [part.start for part in parts] == [index * len(matrix) // layer.groups for index in range(layer.groups)]
    assert parts[-1].stop == len(matrix)
    for part in parts:
        weight, output = matrix[part.start : part.stop], answer[part.start : part.stop]
        assert part.moments.rows == output.shape[1]
        hessian = part.moments.hessian.double()
        torch.testing.assert_close(((weight @ hessian) * weight).sum(1), output.square().mean(1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weight @ part.moments.mean.double(), output.mean(1), rtol=1e-3, atol=1e-4)


def test_patches_are_what_torch_unfolds(collect: Collect, assert_moments: Check) -> None:
    """The whole Hessian, and not only what one weight sees of it."""
    layer, x = nn.Conv2d(12, 24, 3, stride=2, padding=1, groups=2), torch.randn(3, 12, 8, 9) + 0.3
    patches = functional.unfold(x, 3, padding=1, stride=2).mT.reshape(-1, 12 * 9)
    for part, expected in zip(collect(layer, x)["", "weight"], patches.chunk(2, 1), strict=True):
        assert_moments(part, expected)


@pytest.mark.parametrize(("groups", "watched"), [(32, True), (33, False), (64, False)])
def test_convolutions_of_many_groups_are_left(collect: Collect, groups: int, watched: bool) -> None:
    """Too many Hessians of too few weights: nothing is known, as if it had never been called."""
    layer = nn.Conv1d(groups, groups, 25, groups=groups)
    parts = collect(layer, torch.randn(4, groups, 40))["", "weight"]
    assert len(parts) == (groups if watched else 0)


@pytest.mark.parametrize("bias", [True, False])
def test_attention_projections(collect: Collect, assert_moments: Check, bias: bool) -> None:
    """nn.MultiheadAttention calls none of its projections; its output projection gets what its heads have found."""
    attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True, bias=bias).eval()
    query, memory = rows(60).view(6, 10, FEATURES), rows(48, seed=1).view(6, 8, FEATURES)
    found = collect(attention, (query, memory, memory))
    parts = found["", "in_proj_weight"]
    for part in parts:
        assert_moments(part, query if part.stop <= FEATURES else memory)
    assert parts[-1].stop == 3 * FEATURES
    with torch.no_grad():
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3) if bias else [None] * 3
        heads = [
            functional.linear(x, weight, offset).unflatten(-1, (4, 16)).transpose(1, 2)
            for x, weight, offset in zip((query, memory, memory), weights, biases, strict=True)
        ]
        mixed = torch.softmax(heads[0] @ heads[1].mT / 4, -1) @ heads[2]
    assert_moments(found["out_proj", "weight"][0], mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("need_weights", [True, False])
def test_fused_attention_is_kept_off(collect: Collect, need_weights: bool) -> None:
    """In eval mode torch would compute the whole layer in one kernel, in which nothing can be seen."""
    attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True)
    x = rows().view(4, 10, FEATURES)

    def run(model: nn.Module, calls: Any) -> None:
        model(x, x, x, need_weights=need_weights)

    found = collect(attention, x, run=run)
    assert [part.moments.rows for part in found["", "in_proj_weight"]] == [40]
    assert [part.moments.rows for part in found["out_proj", "weight"]] == [40]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(FEATURES, 4, 96, batch_first=True), 2)
    parts = collect(encoder, x)
    assert len(parts) == 8
    assert {part.moments.rows for one in parts.values() for part in one} == {40}


def test_hidden_states_of_an_lstm(collect: Collect, assert_moments: Check) -> None:
    """The recurrent matrix meets the states that the layer has gone through."""
    lstm, x = nn.LSTM(FEATURES, 32), rows(60).view(6, 10, FEATURES)
    found = collect(lstm, x)
    assert_moments(found["", "weight_ih_l0"][0], x)
    cell = nn.LSTMCell(FEATURES, 32)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.state_dict().items()})
    states = [(torch.zeros(10, 32), torch.zeros(10, 32))]
    with torch.no_grad():
        for step in x:
            states.append(cell(step, states[-1]))
    assert_moments(found["", "weight_hh_l0"][0], torch.stack([hidden for hidden, _ in states[:-1]]))


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_hidden_states_of_other_recurrent_layers(
    collect: Collect, assert_moments: Check, kind: type[nn.RNNBase]
) -> None:
    """Both directions, each with states of its own."""
    layer, x = kind(FEATURES, 32, bidirectional=True), rows(60).view(6, 10, FEATURES)
    found = collect(layer, x)
    with torch.no_grad():
        answers = layer(x)[0]
    zero = torch.zeros(1, 10, 32)
    assert_moments(found["", "weight_ih_l0_reverse"][0], x)
    assert_moments(found["", "weight_hh_l0"][0], torch.cat([zero, answers[:-1, :, :32]]))
    assert_moments(found["", "weight_hh_l0_reverse"][0], torch.cat([zero, answers[1:, :, 32:]]))


def test_packed_sequences_have_no_padding(collect: Collect, assert_moments: Check) -> None:
    """Only positions that hold data are multiplied."""
    lengths = [6, 4, 1]
    x = rows(18).view(3, 6, FEATURES)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True)
    found = collect(nn.GRU(FEATURES, 32, batch_first=True), x, run=lambda model, _: model(packed))
    assert_moments(found["", "weight_ih_l0"][0], torch.cat([x[i, :length] for i, length in enumerate(lengths)]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_inputs(collect: Collect, assert_moments: Check) -> None:
    """A Linear takes rows of several lengths at once."""
    parts = [rows(5), rows(9, seed=1)]
    found = collect(
        nn.Sequential(nn.Linear(FEATURES, 48)), rows(), run=lambda model, _: model(torch.nested.nested_tensor(parts))
    )
    assert_moments(found["0", "weight"][0], torch.cat(parts))


@pytest.mark.parametrize(
    "reparametrize",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        lambda module: nn.utils.prune.l1_unstructured(module, "weight", 0.3),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "pruned"],
)
def test_computed_weights_are_known_by_their_module(
    collect: Collect, assert_moments: Check, reparametrize: Callable[[nn.Module], Any]
) -> None:
    """Each call computes another tensor; and what computes it may itself multiply matrices."""
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 32))
    reparametrize(model[0])
    model.eval()
    x, y = rows(), rows(seed=1)
    found = collect(model, x, y)
    assert_moments(found["0", "weight"][0], torch.cat([x, y]))
    with torch.no_grad():
        assert_moments(found["2", "weight"][0], torch.relu(model[0](torch.cat([x, y]))))


def test_tied_weights_have_met_the_inputs_of_both(collect: Collect, assert_moments: Check) -> None:
    """They get one set of codes, so all inputs count."""
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES))
    model[2].weight = model[0].weight
    x = rows()
    [((layer, _), [part])] = collect(model, x).items()
    with torch.no_grad():
        assert_moments(part, torch.cat([x, torch.relu(model[0](x))]))
    assert layer == "0"


def test_weights_that_are_parts_of_one_memory_are_told_apart(collect: Collect, assert_moments: Check) -> None:
    """As when parameters are slices of one flat tensor."""
    flat = torch.randn(2 * 48 * FEATURES)
    model = TwoLayers(lambda a, b, x: (a(x), b(2 * x)))
    model.b = nn.Linear(FEATURES, 48)
    for layer, part in zip((model.a, model.b), flat.chunk(2), strict=True):
        layer.weight = nn.Parameter(part.view(48, FEATURES))
    x = rows()
    found = collect(model, x)
    assert_moments(found["a", "weight"][0], x)
    assert_moments(found["b", "weight"][0], 2 * x)


@pytest.mark.parametrize("layout", ["transposed", "channels last"])
def test_weights_in_another_layout(collect: Collect, assert_moments: Check, layout: str) -> None:
    """Strides say where the elements are."""
    if layout == "transposed":
        model, x = nn.Sequential(nn.Linear(FEATURES, 48)), rows()
        model[0].weight = nn.Parameter(torch.randn(FEATURES, 48).T)
        assert_moments(collect(model, x)["0", "weight"][0], x)
        return
    model = nn.Sequential(nn.Conv2d(16, 24, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last)
    assert_moments(collect(model, x)["0", "weight"][0], functional.unfold(x, 3).mT.reshape(-1, 16 * 9))


def test_rows_with_nan_are_left_out_and_counted(collect: Collect, assert_moments: Check) -> None:
    """In every layer that they reach."""
    x = rows()
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 32))
    found = collect(model, x)
    good = torch.isfinite(x).all(1)
    assert [part.moments.broken_rows for parts in found.values() for part in parts] == [2, 2]
    assert_moments(found["0", "weight"][0], x[good])
    with torch.no_grad():
        assert_moments(found["2", "weight"][0], torch.relu(model[0](x[good])))


def test_all_rows_broken(collect: Collect) -> None:
    """Nothing is left but their number."""
    [part] = collect(nn.Sequential(nn.Linear(FEATURES, 48)), rows() * float("nan"))["0", "weight"]
    assert (part.moments.rows, part.moments.broken_rows) == (0, 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(collect: Collect, assert_moments: Check, dtype: torch.dtype) -> None:
    """Sums are in double precision where inputs are, and in single precision elsewhere."""
    x = rows().to(dtype)
    [part] = collect(nn.Sequential(nn.Linear(FEATURES, 48)).to(dtype), x)["0", "weight"]
    assert part.moments.hessian.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_moments(part, x)


def test_many_samples_in_vmap(collect: Collect, assert_moments: Check) -> None:
    """What torch.func batches is a product as well."""
    x = rows()
    [part] = collect(OneWeight(lambda x, w: torch.vmap(lambda row: w @ row)(x)), x)["", "matrix"]
    assert_moments(part, x)


class Remembering:
    """A receiver that writes down what it is told."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.changed = 0

    def receive(self, block: Block, inputs: Tensor, shared: bool, order: Any = None) -> None:
        self.blocks.append(block)

    def about_to_change(self, tensor: Tensor) -> None:
        self.changed += 1


def test_nothing_is_seen_outside_of_watching() -> None:
    """Neither before nor after, also if the block raised; and no hook stays."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
    plain = nn.Linear(8, 8)
    receiver = Remembering()
    form = MatrixForm.rows_first((8, 8))
    watched = [
        WatchedWeight("plain", "weight", plain.weight.detach(), form),
        WatchedWeight("computed", "weight", layer.weight.detach(), form, computed_by=layer),
    ]
    watch = ProductWatch(watched, receiver)
    x = torch.randn(3, 8)

    def run() -> list[Block]:
        receiver.blocks.clear()
        plain(x)
        layer(x)
        return list(receiver.blocks)

    modules = list(itertools.chain(layer.modules(), plain.modules()))
    hooks = [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules]
    assert run() == []
    with watch.watching(modules):
        assert run() == [Block("plain", "weight", 0, 8), Block("computed", "weight", 0, 8)]
    assert run() == []
    with pytest.raises(KeyError), watch.watching(modules):
        raise KeyError
    assert run() == []
    assert [(len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules] == hooks


def test_a_failing_call_does_not_confuse_the_next(collect: Collect, assert_moments: Check) -> None:
    """A module whose forward raises, caught by the model, has ended all the same."""

    class Failing(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            if input.shape[0] == 1:
                raise ValueError
            return super().forward(input)

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.risky = nn.utils.parametrizations.weight_norm(Failing(FEATURES, 48))
            self.plain = nn.Parameter(torch.randn(48, FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.risky(x[:1])
            except ValueError:
                functional.linear(3 * x, torch.zeros(48, FEATURES))
            return self.risky(x) + functional.linear(2 * x, self.plain)

    x = rows()
    found = collect(Careful(), x)
    assert_moments(found["risky", "weight"][0], x)
    assert_moments(found["", "plain"][0], 2 * x)


def test_the_model_computes_what_it_always_did(collect: Collect) -> None:
    """Watching changes no result, bit for bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.GELU(), nn.Linear(48, FEATURES), nn.LayerNorm(FEATURES)).eval()
    x, answers = rows(), []
    with torch.no_grad():
        expected = model(x)
    collect(model, x, run=lambda model, calls: answers.append(model(calls[0])))
    assert torch.equal(answers[0], expected)


def test_skip_rules_keep_layers_from_being_watched() -> None:
    """What stays in float costs no memory."""
    found = []

    class Peek(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            found.extend(one.layer for one in context.watched_weights())

    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.Linear(48, 32), nn.Embedding(50, 64))
    passes = [mq.SkipSelectionPass(mq.NameRule("1")), mq.CalibrationPass([rows()], forward=lambda m, x: m[0](x))]
    mq.Quantizer([*passes, mq.Int4PackPass(), Peek()]).run(model)
    assert found == ["0"]  # an embedding multiplies nothing
