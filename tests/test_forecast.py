"""The forecast: a report before anything is packed weighs what the report of the run weighs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.api.quantizing import quantizer_of
from monoquant.modules.tensor_holder import hold


class Tied(nn.Module):
    """An LSTM language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.linear = nn.Linear(64, 80)
        self.lstm = nn.LSTM(80, 64)
        self.head = nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.linear(self.embedding(x)))[0])


@pytest.mark.parametrize(
    "pack",
    [
        mq.Int4PackPass(group_size=32),
        mq.Int4PackPass(symmetric=True),
        mq.Int8PackPass(),
        mq.Int8PackPass(activations="dynamic"),
        mq.HalfCastPass(torch.bfloat16),
    ],
)
@pytest.mark.parametrize("on_meta", [False, True])
def test_a_forecast_weighs_what_the_run_weighs(pack: mq.PackPass, on_meta: bool) -> None:
    """Byte for byte and layer for layer, ties and meta weights included."""
    passes = [mq.SkipSelectionPass.from_options(modules_to_not_convert=[]), pack, mq.ValidationPass()]
    with torch.device("meta") if on_meta else warnings.catch_warnings():
        model = Tied()
    forecast = mq.Quantizer(passes).forecast(model)
    report = mq.Quantizer(passes).run(Tied()).report
    assert (forecast.original_bytes, forecast.quantized_bytes) == (report.original_bytes, report.quantized_bytes)
    assert forecast.quantized_bytes < forecast.original_bytes
    weighed: list[Any] = [
        (one.layer, one.action, one.scheme, one.bytes_before, one.bytes_after) for one in report.layers
    ]
    assert [
        (one.layer, one.action, one.scheme, one.bytes_before, one.bytes_after) for one in forecast.layers
    ] == weighed
    assert forecast.validation is None


def test_a_forecast_leaves_the_model_alone() -> None:
    """It is a dry run, of a state dict as well."""
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantizer = quantizer_of([mq.SkipSelectionPass.from_options(), mq.Int4PackPass()], False, ())
    quantizer.forecast(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(model.linear) is nn.Linear
    names = {one.layer for one in quantizer.forecast(hold(model.state_dict())).layers}
    assert {"linear", "lstm"} <= names


def test_findings_that_need_no_measurement_are_in_it() -> None:
    """A rule that matches nothing, and a default that an option replaced."""
    passes = [mq.SkipSelectionPass.from_options(modules_to_not_convert=["linaer"]), mq.Int4PackPass()]
    codes = {finding.code for finding in mq.Quantizer(passes).forecast(Tied()).findings}
    assert "rule-unmatched" in codes


def test_a_sketch_is_packed_and_holds_no_codes() -> None:
    """Classes, names and shapes are those of the run; the float model is left alone."""
    passes = [
        mq.SkipSelectionPass.from_options(modules_to_not_convert=["head"]),
        mq.Int4PackPass(),
        mq.ValidationPass(),
    ]
    model = Tied()
    sketch = mq.Quantizer(passes).sketch(model)
    result = mq.Quantizer(passes).run(Tied()).model
    assert type(model.linear) is nn.Linear
    assert [type(one).__name__ for one in sketch.modules()] == [type(one).__name__ for one in result.modules()]
    shapes = {name: one.shape for name, one in result.state_dict().items()}
    assert {name: one.shape for name, one in sketch.state_dict().items()} == shapes
    packed = {name for name, one in sketch.state_dict().items() if one.is_meta}
    assert "linear.packed_weight.qweight" in packed
    assert "embedding.weight" not in packed
