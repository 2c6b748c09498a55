"""Shared modules stay shared, tied weights stay tied, and what cannot be packed takes its ties along."""

from __future__ import annotations

import torch
from torch import nn

import monoquant as mq


def test_shared_modules_stay_shared(tokens: list[torch.Tensor]) -> None:
    """A module used under two names is packed once, under one decision, and stays one module."""
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    result = mq.quantize(model, accuracy_warning="ignore", plugins=False)
    assert result.model[0] is result.model[2]
    assert result.info.selected_layers == ["0"]
    assert result.report.layers[0].aliases == ("2",)


class Tied(nn.Module):
    """Two Linears with one weight and two biases."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(64, 64) if embedding else nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.third = nn.Linear(64, 64)
        self.second.weight = self.first.weight


def test_tied_linears_share_one_packed_weight() -> None:
    """Ties survive packing, and the bytes are counted once."""
    result = mq.quantize(Tied(embedding=False), accuracy_warning="ignore", plugins=False)
    model = result.model
    assert model.first.packed_weight is model.second.packed_weight
    assert model.first.packed_weight is not model.third.packed_weight
    assert model.first.bias is not model.second.bias
    packed = sum(buffer.numel() * buffer.element_size() for buffer in model.first.packed_weight.buffers())
    assert result.report.quantized_bytes == 2 * packed + 3 * 64 * 4


def test_a_linear_tied_to_an_embedding_follows_it() -> None:
    """The embedding stays float by rule, so the Linear that shares its weight does too, and says why."""
    result = mq.quantize(Tied(embedding=True), accuracy_warning="ignore", plugins=False)
    records = {record.layer: record for record in result.report.layers}
    assert records["second"].action is mq.Action.SKIP
    assert "tied to 'first'" in records["second"].reason
    assert records["third"].action is mq.Action.QUANTIZE
    assert result.model.second.weight is result.model.first.weight


def test_a_linear_tied_to_an_embedding_shares_its_packed_weight() -> None:
    """Without the type rule both are packed, into one weight that is stored and counted once."""
    result = mq.quantize(Tied(embedding=True), skip_layer_types=[], accuracy_warning="ignore", plugins=False)
    model = result.model
    assert result.info.selected_layers == ["first", "second", "third"]
    assert isinstance(model.first, nn.Embedding)
    assert model.first.packed_weight is model.second.packed_weight
    assert model.first.packed_weight is not model.third.packed_weight
    assert torch.equal(model.first(torch.arange(64)), model.second.weight)
    packed = sum(buffer.numel() * buffer.element_size() for buffer in model.first.packed_weight.buffers())
    assert result.report.quantized_bytes == 2 * packed + 2 * 64 * 4


def test_a_linear_tied_to_something_unpackable_is_unsupported() -> None:
    """An embedding that writes to its weight cannot be packed, so packing the Linear would untie them."""
    model = Tied(embedding=True)
    model.first.max_norm = 1.0
    result = mq.quantize(model, skip_layer_types=[], accuracy_warning="ignore", plugins=False)
    records = {record.layer: record for record in result.report.layers}
    assert records["first"].action is mq.Action.UNSUPPORTED
    assert records["second"].action is mq.Action.UNSUPPORTED
    assert records["first"].reason in records["second"].reason
    assert "untie them" in records["second"].remedy
    assert records["third"].action is mq.Action.QUANTIZE
    assert result.model.second.weight is result.model.first.weight


def test_linears_that_share_only_a_bias_are_packed_apart() -> None:
    """A shared bias is no reason to share the weight."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].bias = model[0].bias
    result = mq.quantize(model, accuracy_warning="ignore", plugins=False)
    assert not torch.equal(result.model[0].weight, result.model[1].weight)
    assert result.model[0].bias is result.model[1].bias


class One(nn.Module):
    """Holds one matrix."""

    def __init__(self, first: nn.Parameter) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.first


class Two(One):
    """Holds two."""

    def __init__(self, first: nn.Parameter, second: nn.Parameter) -> None:
        super().__init__(first)
        self.second = second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) @ self.second


def test_a_chain_of_ties_gets_one_answer() -> None:
    """One matrix of the middle is tied to each end; if one end stays in float, so do all three."""
    first, second = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.randn(32, 32))
    for names in (("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")):
        parts = {"a": One(first), "b": Two(first, second), "c": One(second)}
        model = nn.ModuleDict({name: parts[name] for name in names} | {"d": nn.Linear(32, 32)})
        report = mq.quantize(model, bits=8, skip_layer_names=["c"], accuracy_warning="ignore").report
        actions = {record.layer: record.action.value for record in report.layers}
        assert actions == {"a": "skip", "b": "skip", "c": "skip", "d": "quantize"}
        reasons = {record.layer: record.reason for record in report.layers}
        assert "its weight is tied to 'b', which stays in float: its weight is tied to 'c'" in reasons["a"]
