"""What is planned for every kind of module: each parameter has one answer, and the run keeps to it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.testing.zoo import Specimen

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

PACK: dict[str, Callable[[], mq.PackPass]] = {
    "int4": lambda: mq.Int4PackPass(32),
    "int8": mq.Int8PackPass,
    "int8-dynamic": lambda: mq.Int8PackPass(activations="dynamic"),
    "int8-static": lambda: mq.Int8PackPass(activations="static"),
    "float16": mq.HalfCastPass,
}


def plan(model: nn.Module, precision: str) -> tuple[mq.Decision, ...]:
    """What a run with the same precision would decide."""
    return mq.Quantizer([mq.SkipSelectionPass(), mq.CalibrationPass([]), PACK[precision]()]).plan(model)


def owner(parameter: str) -> str:
    """Name of the layer that a parameter belongs to, by its full name."""
    parts = parameter.split(".")
    return ".".join(parts[: parts.index("parametrizations") if "parametrizations" in parts else -1])


def test_every_parameter_has_exactly_one_answer(specimen: Specimen, precision: str) -> None:
    """Each module that owns parameters is decided on once, in model order, and nothing else is."""
    model = specimen.build()
    decisions = plan(model, precision)
    owners = dict.fromkeys(owner(name) for name, _ in model.named_parameters())
    assert [decision.layer for decision in decisions] == list(owners)


def test_what_can_be_packed_is_packed_and_all_else_is_told_why(specimen: Specimen, precision: str) -> None:
    """Names of the packed weights are the expected ones; other layers are unsupported, with the expected reason."""
    decisions = {decision.layer: decision for decision in plan(specimen.build(), precision)}
    packed = {layer: one for layer, one in decisions.items() if one.action is mq.Action.QUANTIZE}
    assert {layer: sorted(one.weights) for layer, one in packed.items()} == {
        layer: sorted(names) for layer, names in specimen.packed.items()
    }
    others = {layer: one for layer, one in decisions.items() if layer not in packed}
    assert others.keys() == specimen.unsupported.keys()
    for layer, decision in others.items():
        assert decision.action is mq.Action.UNSUPPORTED
        assert specimen.unsupported[layer] in decision.reason
        assert bool(decision.remedy) == ("no weight matrix" not in decision.reason), "only norms have no remedy"


def test_a_plan_needs_no_weights(specimen: Specimen, precision: str) -> None:
    """On the meta device it is the same, to the last word."""
    assert plan(specimen.build().to("meta"), precision) == plan(specimen.build(), precision)


def test_the_run_does_what_was_planned(specimen: Specimen, precision: str, result: mq.QuantResult) -> None:
    """Report and modules agree with the plan; what is to multiply integers does, and nothing else."""
    planned = plan(specimen.build(), precision)
    told = [(one.layer, one.action, one.reason, one.scheme, one.weights, one.compute) for one in planned]
    records = result.report.layers
    assert [(one.layer, one.action, one.reason, one.scheme, one.weights, one.compute) for one in records] == told
    modules = dict(result.model.named_modules())
    packed = {name: module for name, module in modules.items() if isinstance(module, mq.PackedModule)}
    assert {name: set(module.packed_weights()) for name, module in packed.items()} == {
        name: set(weights) for name, weights in specimen.packed.items()
    }
    integers = tuple(name for name, module in packed.items() if isinstance(module, IntegerCompute))
    assert integers == (specimen.in_integers if precision in ("int8-dynamic", "int8-static") else ())
    original = dict(specimen.build().named_modules())
    for name, module in packed.items():
        assert isinstance(module, nn.utils.parametrize.type_before_parametrizations(original[name]))


def test_the_size_in_the_report_is_that_of_the_model(result: mq.QuantResult, specimen: Specimen) -> None:
    """Bytes of parameters and buffers, each storage once; packed ones are fewer than before."""

    def size(model: nn.Module) -> int:
        storages = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in (*model.parameters(), *model.buffers())
        }
        return sum(storages.values())

    assert result.report.original_bytes == size(specimen.build())
    assert result.report.quantized_bytes == size(result.model)
    assert result.report.quantized_bytes < result.report.original_bytes


def test_the_original_is_bit_for_bit_what_it_was(
    specimen: Specimen,
    precision: str,
    result: mq.QuantResult,
    unchanged: Callable[[nn.Module], Callable[[], None]],
    quantize_all: Callable[..., mq.QuantResult],
    outputs: Callable[..., Any],
) -> None:
    """Tensors, flags, classes and hooks of the model that was quantized are as before; a second run is bit-equal."""
    model, inputs = specimen.build(), specimen.inputs()
    check = unchanged(model)
    again = quantize_all(model, precision, [inputs])
    check()
    for one, other in zip(outputs(again.model, inputs), outputs(result.model, inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["int4", "int8-static"])
def test_in_place_the_model_itself_becomes_what_a_copy_would(
    specimen: Specimen,
    precision: str,
    result: mq.QuantResult,
    quantize_all: Callable[..., mq.QuantResult],
    outputs: Callable[..., Any],
) -> None:
    """The same objects, with the outputs of the copy; the float weights are let go."""
    model, inputs = specimen.build(), specimen.inputs()
    modules = dict(model.named_modules())
    names = [(layer, name) for layer, names in specimen.packed.items() for name in names]
    weights = [] if specimen.is_reparametrized else [modules[layer].get_parameter(name) for layer, name in names]
    watched = [weakref.ref(weight) for weight in weights]
    weights.clear()
    assert quantize_all(model, precision, [inputs], inplace=True).model is model
    for layer in specimen.packed:
        assert model.get_submodule(layer) is modules[layer]
    if any(reference() is not None for reference in watched):
        gc.collect()  # slow, and rarely needed
    assert all(reference() is None for reference in watched)
    for one, other in zip(outputs(model, inputs), outputs(result.model, inputs), strict=True):
        assert torch.equal(one, other)


def test_what_is_quantized_already_is_refused(
    specimen: Specimen, precision: str, result: mq.QuantResult, quantize_all: Callable[..., mq.QuantResult]
) -> None:
    """A second quantization names the layers of the first."""
    with pytest.raises(mq.InputError, match="already quantized") as caught:
        quantize_all(result.model, precision, [specimen.inputs()])
    assert set(caught.value.layers) <= set(specimen.packed)
    assert caught.value.layers
