"""The operator that compilers and exporters see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

import monoquant as mq
from monoquant.kernels import portable
from monoquant.kernels.base import ProductKernel, located
from monoquant.kernels.choice import Offer
from monoquant.kernels.op import AT_PORTABLE, packed_linear
from monoquant.kernels.portable import Portable
from monoquant.kernels.torch_bf16 import TorchBf16
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.values import Scheme
from tests.kernels import crooked
from tests.kernels.matrices import matrices, normal, packed


def arguments(matrix: PackedMatrix, inputs: Tensor, bias: Tensor | None, kernel: str = AT_PORTABLE) -> tuple[Any, ...]:
    qweight, scale, zero_point, columns, group_size = matrix.codes
    derived = [qweight.sum(1)] if kernel.endswith("Fast") else []
    return (inputs, qweight, scale, zero_point, bias, derived, columns, group_size, kernel)


@pytest.mark.parametrize("kernel", [AT_PORTABLE, located(crooked.Fast())])
@pytest.mark.parametrize(
    ("shape", "symmetric"), [((3, 50), False), ((2, 3, 50), True), ((50,), True), ((0, 50), False)]
)
def test_opcheck(kernel: str, shape: tuple[int, ...], symmetric: bool) -> None:
    """Schema, fake implementation, autograd registration and AOT dispatch agree, whichever kernel computes."""
    matrix = packed(7, 50, Scheme(4, 16, symmetric))
    inputs, bias = normal(*shape).requires_grad_(), normal(7, seed=2).requires_grad_()
    for call in (arguments(matrix, inputs, bias, kernel), arguments(matrix, inputs.detach(), None, kernel)):
        torch.library.opcheck(packed_linear, call)


@given(matrix=matrices)
def test_gradients_are_those_of_the_dequantized_product(matrix: PackedMatrix) -> None:
    """For input and bias, in any scheme."""
    inputs, bias = normal(2, 3, matrix.columns).requires_grad_(), normal(matrix.rows, seed=2).requires_grad_()
    packed_linear(*arguments(matrix, inputs, bias)).square().sum().backward()
    twin, other = inputs.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    functional.linear(twin, matrix.dequantize(), other).square().sum().backward()
    torch.testing.assert_close(inputs.grad, twin.grad, rtol=1e-4, atol=1e-3 * float(twin.grad.abs().max()))
    torch.testing.assert_close(bias.grad, other.grad, rtol=1e-4, atol=1e-3 * float(other.grad.abs().max()))


def test_gradients_of_an_approximate_kernel_are_exact() -> None:
    """They pass straight through its rounding."""
    matrix, inputs = packed(7, 50, Scheme(4, 16)), normal(3, 50).requires_grad_()
    packed_linear(*arguments(matrix, inputs, None, located(crooked.Rough()))).sum().backward()
    torch.testing.assert_close(inputs.grad, matrix.dequantize().sum(0).expand(3, -1))


def quantized(**options: object) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 10))
    return mq.quantize(model, accuracy_warning="ignore", plugins=False, **options).model


@pytest.mark.parametrize("exact", [True, False])
def test_compiled_in_one_graph_for_any_batch(exact: bool) -> None:
    """torch.compile(fullgraph=True) sees one operator per layer, and gives the same numbers."""
    model = quantized(exact=exact)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 5, 40):
        torch.testing.assert_close(compiled(normal(rows, 64)), model(normal(rows, 64)))


def test_exported_programs_hold_nothing_of_this_machine() -> None:
    """Canonical buffers and the portable kernel only, although another one computes here."""
    model = quantized()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (normal(4, 64),), dynamic_shapes=({0: batch},))
    calls = [node for node in program.graph.nodes if node.target is packed_linear]
    assert [node.args[8] for node in calls] == [AT_PORTABLE] * 2
    assert [list(node.args[5]) for node in calls] == [[], []]
    assert {name.rpartition(".")[2] for name in program.state_dict} == {
        "bias",
        "qweight",
        "scale",
        "zero_point",
        "layout",
    }
    assert not program.constants
    torch.testing.assert_close(program.module()(normal(9, 64)), quantized(exact=True)(normal(9, 64)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use of it
def test_forward_mode_derivatives_are_not_zero() -> None:
    """torch has none for operators of one's own, and would silently take zeros: plain operators compute instead."""
    model, x, tangent = quantized(exact=True), normal(3, 64), normal(3, 64, seed=1)
    expected = torch.func.jvp(mq.dequantize(model), (x,), (tangent,))[1]
    assert expected.abs().min() > 0
    torch.testing.assert_close(torch.func.jvp(model, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(found, expected)


def test_function_transforms() -> None:
    """vmap and grad of torch.func go on working."""
    model, x = quantized(exact=True), normal(4, 3, 64)
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
    gradient = torch.func.grad(lambda rows: model(rows).sum())(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda rows: mq.dequantize(model)(rows).sum())(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_models_hold_plain_operators() -> None:
    """A TorchScript trace may be loaded where monoquant is not."""
    model = quantized()
    traced = torch.jit.trace(model, normal(3, 64))
    assert "packed_linear" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(normal(5, 64)), quantized(exact=True)(normal(5, 64)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_inputs() -> None:
    """Rows of several lengths are multiplied as nn.Linear multiplies them."""
    layer = quantized(exact=True)[0]
    parts = [normal(3, 64), normal(5, 64, seed=1)]
    for layout in (torch.strided, torch.jagged):
        output = layer(torch.nested.nested_tensor(parts, layout=layout))
        for part, found in zip(parts, output.unbind(), strict=True):
            torch.testing.assert_close(found, layer(part))


def test_autocast_decides_the_dtype_of_the_output() -> None:
    """As for nn.Linear."""
    layer = quantized(exact=True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        for inputs in (normal(3, 64), normal(3, 64, dtype=torch.bfloat16)):
            output = layer(inputs)
            assert output.dtype == torch.bfloat16
            torch.testing.assert_close(
                output.float(), mq.dequantize(layer)(normal(3, 64)).float(), rtol=0.05, atol=0.05
            )


@pytest.mark.parametrize("kernel", [Portable(), TorchBf16()])
@pytest.mark.parametrize("count", [3, 40, 200])
@pytest.mark.parametrize("bias", [True, False])
def test_autocast_leaves_the_sums_of_a_kernel_alone(
    kernel: ProductKernel, count: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast a product is that of float32, rounded once."""
    monkeypatch.setattr(portable, "TILE_ELEMENTS", 1000)
    matrix, inputs, added = packed(40, 96, Scheme(4, 32)), normal(count, 96, seed=1), normal(40) if bias else None
    matrix.use(Offer([kernel], exact=False))
    expected = matrix.multiplied(inputs, added).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix.multiplied(inputs, added), expected)


@pytest.mark.parametrize("inputs", [normal(3, 63), normal(3, 64, dtype=torch.float64), normal(2, 3, 65)])
def test_inputs_that_do_not_fit(inputs: Tensor) -> None:
    """Wrong features or dtype: the error says what the layer takes."""
    with pytest.raises(mq.InputError, match=r"this layer takes 64 input features in torch.float32"):
        quantized()[0](inputs)
