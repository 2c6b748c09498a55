"""Int4Linear stands in for nn.Linear wherever a Linear may stand."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from monoquant.errors import InputError
from monoquant.kernels.portable import dequantized
from monoquant.modules.linear import Int4Linear
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.testing.strategies import schemes, weights
from monoquant.values import PACKABLE_DTYPES, Scheme
from tests.closeness import assert_product

normal = settings(deadline=None, max_examples=100)
INPUT_SHAPES = ((70,), (1, 70), (5, 70), (0, 70), (2, 0, 70), (3, 4, 70), (2, 3, 4, 70))


def packed_linear(
    bias: bool = True, dtype: torch.dtype = torch.float32, symmetric: bool = False, columns: int = 70
) -> Int4Linear:
    torch.manual_seed(0)
    layer = nn.Linear(columns, 33, bias=bias, dtype=dtype)
    packed, _ = PackedMatrix.pack(layer.weight, Scheme(group_size=32, symmetric=symmetric))
    PackedLayer({"weight": packed}, Int4Linear).put_into(layer)
    assert isinstance(layer, Int4Linear)
    return layer


def multiplied(layer: Int4Linear) -> Tensor:
    """The matrix that a layer multiplies with; its visible weight is this in the layer's dtype."""
    return dequantized(layer.packed_weight.codes)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@normal
@given(weight=weights(), scheme=schemes(bits=[4]), bias=st.booleans(), batch=st.integers(0, 5))
def test_forward_is_linear_with_the_packed_weight(weight: torch.Tensor, scheme: Scheme, bias: bool, batch: int) -> None:
    """Any weight in any dtype: the output is the product with the codes and the bias, summed in float32."""
    rows, columns = weight.shape
    layer = Int4Linear(columns, rows, bias, scheme, dtype=weight.dtype)
    layer.packed_weight.load_state_dict(PackedMatrix.pack(weight, scheme)[0].state_dict())
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = inputs(batch, columns, dtype=weight.dtype)
    output = layer(x)
    assert_product(output, x, multiplied(layer), layer.bias)
    assert torch.equal(layer.weight, layer.packed_weight.dequantize())


@pytest.mark.parametrize("shape", INPUT_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_batch_shape(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    """One row, no rows and several batch dimensions work as they do for nn.Linear, in each dtype."""
    layer = packed_linear(bias, dtype)
    x = inputs(*shape, dtype=dtype)
    output = layer(x)
    assert_product(output, x, multiplied(layer), layer.bias)


def test_non_contiguous_inputs() -> None:
    """Transposed, strided and expanded inputs give what F.linear gives."""
    layer = packed_linear()
    for x in (inputs(70, 5).T, inputs(10, 140)[::2, ::2], inputs(1, 70).expand(6, 70), inputs(3, 70, 4).mT):
        assert not x.is_contiguous()
        assert_product(layer(x), x, multiplied(layer), layer.bias)


def test_input_can_be_given_by_name() -> None:
    """Code that writes ``linear(input=x)`` goes on working."""
    layer, x = packed_linear(), inputs(2, 70)
    assert torch.equal(layer(input=x), layer(x))


def test_the_wrong_number_of_features_is_an_error() -> None:
    """An input that does not fit is refused, and not cut or padded like a ragged group."""
    with pytest.raises(InputError, match=r"input of shape \(2, 69\) and dtype torch.float32: .* takes 70 .*float32"):
        packed_linear()(inputs(2, 69))


def test_the_wrong_dtype_is_an_error() -> None:
    """It is refused, as nn.Linear refuses it, and not rounded in silence."""
    with pytest.raises(InputError, match=r"dtype torch.float64: .* takes 70 input features in torch.float32"):
        packed_linear()(inputs(2, 70, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_input_and_bias(bias: bool) -> None:
    """Layers before a packed one can be trained; the codes themselves take no gradient."""
    layer, x = packed_linear(bias), inputs(4, 70).requires_grad_()
    layer(x).square().sum().backward()
    twin, y = x.detach().clone().requires_grad_(), layer.weight
    other_bias = None if layer.bias is None else layer.bias.detach().clone().requires_grad_()
    functional.linear(twin, y, other_bias).square().sum().backward()
    assert torch.equal(x.grad, twin.grad)
    assert not layer.weight.requires_grad
    assert [name for name, _ in layer.named_parameters()] == (["bias"] if bias else [])
    if layer.bias is not None:
        assert torch.equal(layer.bias.grad, other_bias.grad)


def test_state_dict_names() -> None:
    """The keys of a state dict are a file format: they may not drift."""
    expected = ["bias", "packed_weight.qweight", "packed_weight.scale", "packed_weight.zero_point"]
    assert sorted(packed_linear().state_dict()) == sorted([*expected, "packed_weight.layout"])
    assert sorted(packed_linear(bias=False, symmetric=True).state_dict()) == [
        "packed_weight.layout",
        "packed_weight.qweight",
        "packed_weight.scale",
    ]


@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
def test_casts_reach_weight_and_bias_but_not_the_scales(dtype: torch.dtype) -> None:
    """After a cast the layer works in the new dtype on the same codes and the same scales."""
    layer = packed_linear()
    digest, values = layer.packed_weight.digest(), layer.weight
    layer.to(dtype)
    assert layer.weight.dtype == layer.bias.dtype == layer(inputs(2, 70, dtype=dtype)).dtype == dtype
    assert layer.packed_weight.scale.dtype == torch.float16
    assert layer.packed_weight.digest() == digest
    assert torch.equal(layer.weight, values.to(dtype))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_copies_compute_the_same(bias: bool, symmetric: bool) -> None:
    """A deep copy, an unpickled layer and a strictly loaded fresh layer all give equal outputs."""
    layer, x = packed_linear(bias, symmetric=symmetric), inputs(3, 70)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    fresh = Int4Linear(70, 33, bias, layer.packed_weight.scheme)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    for twin in (copy.deepcopy(layer), torch.load(buffer, weights_only=False), fresh):
        assert torch.equal(twin(x), layer(x))


def test_fresh_layer_is_zero() -> None:
    """Without loading, a layer is a valid one of zeros, so nothing ever computes with uninitialised memory."""
    layer = Int4Linear(5, 3)
    assert torch.equal(layer.weight, torch.zeros(3, 5))
    assert torch.equal(layer(inputs(2, 5)), torch.zeros(2, 3))


def test_dtype_defaults_to_that_of_torch() -> None:
    """A layer built without dtype follows torch's default dtype, as nn.Linear does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert Int4Linear(5, 3).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert Int4Linear(5, 3, dtype=torch.bfloat16).weight.dtype == torch.bfloat16


def test_meta_layer_is_filled_by_loading() -> None:
    """A layer built on the meta device takes no memory, and computes like the saved one once loaded."""
    layer, x = packed_linear(), inputs(3, 70)
    skeleton = Int4Linear(70, 33, scheme=Scheme(group_size=32), device="meta")
    assert skeleton(x.to("meta")).shape == (3, 33)
    assert skeleton.weight.is_meta
    skeleton.to_empty(device="cpu").load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(skeleton(x), layer(x))


def test_another_group_size_is_refused_by_name() -> None:
    """A state dict of other groups fits the shapes by accident and is refused all the same."""
    other = Int4Linear(70, 33, scheme=Scheme(group_size=36))
    assert other.packed_weight.scale.shape == Int4Linear(70, 33, scheme=Scheme(group_size=35)).packed_weight.scale.shape
    with pytest.raises(RuntimeError, match=r"packed_weight\.layout .*group size.* 36, .* 35, "):
        Int4Linear(70, 33, scheme=Scheme(group_size=35)).load_state_dict(other.state_dict())


def test_repr_tells_shape_and_scheme() -> None:
    """Printing a model shows what was packed and how."""
    text = repr(packed_linear(symmetric=True))
    assert "in_features=70, out_features=33, bias=True" in text
    assert "33x70, int4 g32 symmetric float16" in text


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compiles_without_graph_breaks(backend: str, symmetric: bool) -> None:
    """torch.compile takes the layer in one graph and gives the eager result."""
    layer, x = packed_linear(symmetric=symmetric).eval(), inputs(4, 70)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("columns", [70, 33])
def test_exports_with_a_dynamic_batch(columns: int) -> None:
    """An exported layer gives the eager result at batch sizes it was not exported with."""
    layer = packed_linear(columns=columns).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (inputs(4, columns),), dynamic_shapes={"input": {0: batch}})
    for size in (1, 4, 9, 64):
        x = inputs(size, columns)
        assert torch.equal(program.module()(x), layer(x))
