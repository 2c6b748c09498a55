"""Every kind of module runs with packed weights: in eval and training mode, copied, and moved to another dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import monoquant as mq
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.modules.integer_compute import Int8Dynamic, Int8Static, IntegerCompute
from monoquant.modules.packed_weight import PackedWeight
from monoquant.testing.zoo import Specimen

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

Outputs = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]


def converted(inputs: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """Float inputs changed, those that are one object staying one."""
    changed = {id(value): change(value) if value.is_floating_point() else value for value in inputs}
    return tuple(changed[id(value)] for value in inputs)


def first_float(value: Any) -> Tensor:
    """The first float tensor of an answer."""
    while isinstance(value, tuple):
        value = value[0]
    return value


def gradients(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor | None]:
    """Gradients of all float inputs and parameters in training mode, by name."""
    leaves = converted(inputs, lambda value: value.clone().requires_grad_())
    answer = first_float(model.train()(*leaves))
    direction = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1), dtype=answer.dtype)
    if answer.requires_grad:
        (answer * direction).sum().backward()
    named = {str(index): leaf for index, leaf in enumerate(leaves) if leaf.is_floating_point()}
    return {name: leaf.grad for name, leaf in (*named.items(), *model.named_parameters())}


def test_a_forward_is_the_same_with_and_without_gradients(
    specimen: Specimen, result: mq.QuantResult, outputs: Outputs
) -> None:
    """Shapes and dtypes are those of the float module, values are finite, and no mode changes them."""
    inputs = specimen.inputs()
    quiet = outputs(result.model, inputs)
    for packed, plain in zip(quiet, outputs(specimen.build(), inputs), strict=True):
        assert (packed.shape, packed.dtype) == (plain.shape, plain.dtype)
        assert torch.isfinite(packed).all()
        assert not torch.equal(packed, plain)
    torch.testing.assert_close(first_float(result.model(*inputs)).detach(), quiet[0], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(first_float(result.model(*inputs)), quiet[0], rtol=1e-5, atol=1e-5)


def test_gradients_reach_inputs_and_all_that_stays_float(
    specimen: Specimen, precision: str, result: mq.QuantResult, exact_model: nn.Module
) -> None:
    """They are those of the dequantized module; where inputs are rounded, nearly."""
    inputs = specimen.inputs()
    found, exact = (gradients(copy.deepcopy(model), inputs) for model in (result.model, exact_model))
    expected = gradients(mq.dequantize(result.model), inputs)
    packed = {f"{layer}.{name}".lstrip(".") for layer, names in specimen.packed.items() for name in names}
    assert found.keys() == expected.keys() - packed
    integers = any(isinstance(module, IntegerCompute) for module in result.model.modules())
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.any(), name
        assert cosine_similarity(gradient.flatten(), expected[name].flatten(), 0) > 0.99, name
        if not integers:
            torch.testing.assert_close(exact[name], expected[name], rtol=1e-4, atol=1e-5)


def test_a_deep_copy_computes_the_same_and_shares_nothing(
    specimen: Specimen, result: mq.QuantResult, outputs: Outputs
) -> None:
    """Outputs are bit-equal; no tensor is the original's."""
    copied = copy.deepcopy(result.model)
    for one, other in zip(outputs(copied, specimen.inputs()), outputs(result.model, specimen.inputs()), strict=True):
        assert torch.equal(one, other)
    assert [type(module) for module in copied.modules()] == [type(module) for module in result.model.modules()]
    original = {tensor.data_ptr() for tensor in result.model.state_dict().values()}
    assert original.isdisjoint(tensor.data_ptr() for tensor in copied.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_move_to_another_dtype_keeps_codes_exact(
    specimen: Specimen,
    result: mq.QuantResult,
    exact_model: nn.Module,
    dtype: torch.dtype,
    outputs: Outputs,
    sqnr: Callable[..., float],
) -> None:
    """Stored bytes stay, weights and outputs take the dtype; no approximate kernel multiplies in double precision."""
    moved = copy.deepcopy(result.model).to(dtype)
    pairs = zip(moved.modules(), result.model.modules(), strict=True)
    exact = [(one, other) for one, other in pairs if isinstance(other, ExactBuffers)]
    assert any(isinstance(one, PackedWeight) for one, _ in exact)
    for one, other in exact:
        assert not isinstance(one, PackedWeight) or one.dequantize().dtype == dtype
        for name, buffer in other.named_buffers():
            assert one.get_buffer(name).dtype == buffer.dtype
            assert torch.equal(one.get_buffer(name), buffer)
    inputs = specimen.inputs()
    answer, expected = outputs(moved, converted(inputs, lambda value: value.to(dtype))), outputs(exact_model, inputs)
    assert answer[0].dtype == dtype
    assert sqnr(expected[0], answer[0]) > (25 if dtype == torch.bfloat16 else 80)


def test_a_detour_by_double_precision_changes_nothing(
    specimen: Specimen, result: mq.QuantResult, outputs: Outputs
) -> None:
    """What stays float is exact in double precision, and codes never changed."""
    back = copy.deepcopy(result.model).double().float()
    for one, other in zip(outputs(back, specimen.inputs()), outputs(result.model, specimen.inputs()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-static"])
def test_no_layer_that_multiplies_integers_is_bypassed(
    specimen: Specimen, precision: str, result: mq.QuantResult, monkeypatch: pytest.MonkeyPatch, outputs: Outputs
) -> None:
    """Each does so in a forward in eval mode, where torch would like to take its fused kernels."""
    # No hooks: they alone would keep torch from its fused kernels.
    kind = Int8Dynamic if precision == "int8-dynamic" else Int8Static
    called, real = [], kind.integer_rows

    def counting(self: Any, *args: Any) -> tuple[Tensor, Tensor]:
        called.append(self)
        return real(self, *args)

    monkeypatch.setattr(kind, "integer_rows", counting)
    outputs(result.model, specimen.inputs())
    calls = {name: called.count(module) for name, module in result.model.named_modules()}
    times = 2 if specimen.name == "module used twice" else 1
    assert {name: count for name, count in calls.items() if count} == dict.fromkeys(specimen.in_integers, times)
