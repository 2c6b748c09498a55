"""ProductWatch in layers of all kinds: convolutions, attention, recurrent ones, tied and computed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from monoquant.numerics.matrix_form import MatrixForm
from tests.statistics.watching import FEATURES, Check, Collect, TwoLayers, rows

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
