"""Layers that multiply integers: equal to an independent computation, straight-through gradients, no bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import monoquant as mq
from monoquant.modules.integer_compute import InputQuantizer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.values import INT8_SCHEME


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dynamic(out: int, features: int, *, bias: bool = True, seed: int = 0) -> mq.Int8DynamicLinear:
    layer = mq.Int8DynamicLinear(features, out, bias)
    layer.packed_weight, _ = PackedMatrix.pack(gaussian(out, features, seed=seed), INT8_SCHEME)
    if bias:
        layer.bias = nn.Parameter(gaussian(out, seed=seed + 1))
    return layer


def static(out: int, features: int, low: float, high: float) -> mq.Int8StaticLinear:
    layer = mq.Int8StaticLinear(features, out)
    layer.packed_weight, _ = PackedMatrix.pack(gaussian(out, features), INT8_SCHEME)
    scale = torch.tensor((high - low) / 255)
    layer.packed_input = InputQuantizer(scale, torch.round(-low / scale) - 128, layer.packed_weight)
    return layer


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 9), st.integers(0, 2**16))
def test_dynamic_equals_the_product_of_dequantized_inputs(rows: int, features: int, out: int, seed: int) -> None:
    """Computed independently, in float64, from the definition."""
    layer, inputs = dynamic(out, features, seed=seed), gaussian(rows, features, seed=seed + 7)
    step = inputs.abs().amax(1, keepdim=True).double() / 127
    rounded = (inputs.double() / step).round() * step
    expected = rounded @ layer.weight.detach().double().T + layer.bias.detach().double()
    with torch.no_grad():
        found = layer(inputs)
    # A value right between two codes may be rounded the other way, by one step of one input.
    slack = step * layer.weight.detach().abs().double().amax()
    assert bool(((found - expected).abs() <= 1e-5 * expected.abs().max() + slack).all())
    assert (found - expected).abs().median() < 1e-5


@settings(max_examples=40)
@given(st.floats(-5, 0), st.floats(0.1, 5), st.integers(0, 2**16))
def test_static_equals_the_product_of_clipped_inputs(low: float, high: float, seed: int) -> None:
    """Also for ranges far from symmetric, where the correction for the zero_point counts."""
    layer, inputs = static(6, 40, low, high), gaussian(5, 40, seed=seed) * 3
    known = layer.packed_input
    codes = (inputs.double() / known.scale.double()).round().add(int(known.zero_point)).clamp(-128, 127)
    expected = ((codes - int(known.zero_point)) * known.scale.double()) @ layer.weight.detach().double().T
    with torch.no_grad():
        found = layer(inputs)
    assert (found - expected - layer.bias.double()).abs().max() <= 0.02 * max(1.0, float(expected.abs().max()))
    assert (found - expected - layer.bias.double()).abs().median() < 1e-4


def test_a_sample_gives_the_same_output_in_every_batch() -> None:
    """Bit for bit: rows are quantized one by one."""
    layer, inputs = dynamic(16, 64), gaussian(12, 64)
    with torch.no_grad():
        assert torch.equal(layer(inputs)[3], layer(inputs[3]))


@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 3, 8), (1, 1, 1, 8)])
def test_any_leading_shape_is_taken(shape: tuple[int, ...]) -> None:
    """As by nn.Linear."""
    with torch.no_grad():
        assert dynamic(5, 8)(torch.zeros(shape)).shape == (*shape[:-1], 5)


@pytest.mark.parametrize("layer", [dynamic(5, 8), static(5, 8, -1, 1)], ids=["dynamic", "static"])
def test_inputs_of_another_width_are_refused(layer: nn.Module) -> None:
    """Without the check, a reshape would make other rows of them."""
    with pytest.raises(mq.InputError, match=r"input of shape \(16, 4\): this layer takes 8 input features"):
        layer(torch.zeros(16, 4))


@pytest.mark.parametrize("layer", [dynamic(5, 8), static(5, 8, -1, 1)], ids=["dynamic", "static"])
def test_nan_stays_nan_in_its_row_only(layer: nn.Module) -> None:
    """An integer cannot be nan, the output must be."""
    inputs = gaussian(3, 8)
    inputs[1, 0] = float("nan")
    with torch.no_grad():
        assert layer(inputs).isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("layer", [dynamic(5, 8), static(5, 8, -3, 3)], ids=["dynamic", "static"])
def test_gradients_pass_straight_through(layer: nn.Module) -> None:
    """The input's gradient is that of a float layer with the same weight; the output does not change with it."""
    inputs = gaussian(4, 8).requires_grad_()
    weight = layer.weight.detach()
    output = layer(inputs)
    output.square().sum().backward()
    assert torch.allclose(inputs.grad, 2 * output.detach() @ weight, rtol=1e-4, atol=1e-5)
    assert layer.bias.grad is not None
    with torch.no_grad():
        assert torch.allclose(layer(inputs), output, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_moving_to_another_dtype_changes_no_code_and_no_scale(dtype: torch.dtype) -> None:
    """Neither those of the weight nor those of the inputs."""
    for layer in (dynamic(5, 8), static(5, 8, -1, 1)):
        moved = copy.deepcopy(layer).to(dtype)
        for name, buffer in layer.named_buffers():
            assert torch.equal(dict(moved.named_buffers())[name], buffer)
        with torch.no_grad():
            assert moved(gaussian(2, 8).to(dtype)).dtype == dtype


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_inputs_are_taken_one_by_one() -> None:
    """As nn.TransformerEncoder makes them of padded batches."""
    layer, parts = dynamic(5, 8), [gaussian(2, 8), gaussian(3, 8, seed=1)]
    with torch.no_grad():
        found = layer(torch.nested.as_nested_tensor(parts)).unbind()
        assert all(torch.equal(one, layer(part)) for one, part in zip(found, parts, strict=True))


def test_a_new_static_layer_takes_inputs_around_zero() -> None:
    """And says what it takes."""
    layer = mq.Int8StaticLinear(8, 5)
    assert "scale=0.007812, zero_point=0" in repr(layer)
    assert layer(torch.zeros(2, 8)).tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_output_has_the_inputs_dtype_whatever_the_bias_has(dtype: torch.dtype) -> None:
    """As the docstring says, also where a model keeps its biases in float32."""
    with torch.no_grad():
        assert dynamic(5, 8)(gaussian(2, 8).to(dtype)).dtype == dtype


@pytest.mark.parametrize("layer", [dynamic(5, 8), static(5, 8, -1, 1)], ids=["dynamic", "static"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_autocast_decides_the_outputs_dtype(layer: nn.Module, requires_grad: bool) -> None:
    """As it does for an nn.Linear."""
    inputs = gaussian(2, 8).requires_grad_(requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == nn.Linear(8, 5)(inputs).dtype == torch.bfloat16
    assert layer(inputs).dtype == torch.float32
