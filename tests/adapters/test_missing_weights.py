"""Modules of known kinds whose weights are not where they belong."""

from __future__ import annotations

import pytest
from torch import nn

import monoquant as mq


def without_weights(module: nn.Module) -> nn.Module:
    """Everything but a bias becomes buffers."""
    for name, parameter in list(module._parameters.items()):
        if "weight" in name and parameter is not None:
            del module._parameters[name]
            module.register_buffer(name, parameter.detach())
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(8, 8, 3), "Conv2d has no weight of its own"),
        (nn.Linear(8, 8), "Linear has no 2-D weight of its own"),
        (nn.LSTMCell(8, 8), "LSTMCell has no weights of its own"),
        (nn.MultiheadAttention(8, 2), "it has none of the projections of an nn.MultiheadAttention"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_whose_weights_are_buffers_is_unsupported(module: nn.Module, reason: str) -> None:
    """With what is missing, and never a crash."""
    model = nn.ModuleDict({"odd": without_weights(module), "plain": nn.Linear(32, 32)})
    report = mq.quantize(model, bits=8, accuracy_warning="ignore").report
    records = {record.layer: record for record in report.layers}
    assert records["odd"].action is mq.Action.UNSUPPORTED
    assert records["odd"].reason == reason


def test_a_table_with_a_weight_of_another_shape_is_unsupported() -> None:
    """An embedding reads rows of a matrix."""
    table = nn.Embedding(8, 8)
    table.weight = nn.Parameter(table.weight.detach().view(2, 4, 8))
    report = mq.quantize(nn.ModuleDict({"table": table, "plain": nn.Linear(32, 32)}), bits=8).report
    assert report.layers[0].reason == "Embedding has no 2-D weight of its own"
