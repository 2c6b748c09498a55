"""Modules that multiply through kernels, and those that cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.kernels.choice import Offer
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.kernel_compute import KernelCompute, use_kernels
from monoquant.modules.linear import Int4Linear, Int8DynamicLinear
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import HalfScheme, Scheme
from tests.adapters.test_transposed_linear import Conv1D
from tests.closeness import assert_product
from tests.kernels import crooked
from tests.kernels.matrices import normal, packed

FAST = crooked.Fast()


class Tied(nn.Module):
    """The decoder has the encoder's weight, in a module that takes it the other way around."""

    def __init__(self, linear_first: bool) -> None:
        super().__init__()
        if linear_first:
            self.first, self.second = nn.Linear(48, 64), Conv1D(48, 64)
        else:
            self.first, self.second = Conv1D(64, 48), nn.Linear(64, 48)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("linear_first", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_weight_that_is_packed_along_the_other_axis(linear_first: bool, bits: int) -> None:
    """Whose groups do not run along its inputs dequantizes; the other one multiplies, and both give the product."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tied(linear_first)
    options = {"accuracy_warning": "ignore", "plugins": False, "skip_param_threshold": 0, "modules_to_not_convert": []}
    result = mq.quantize(model, bits=bits, **options, **({"exact": True} if bits == 4 else {}))
    first, second = result.model.first, result.model.second
    assert first.packed_weight is second.packed_weight
    for layer, inputs in ((first, normal(5, 48)), (second, normal(5, 64, seed=1))):
        assert isinstance(layer, KernelCompute)
        weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
        assert_product(layer(inputs), inputs, weight, layer.bias)


def test_kernels_are_for_matrices_of_modules_that_multiply_through_them() -> None:
    """Weights of 16 bits, modules that dequantize and those that multiply integers are left alone."""
    half = HalfWeight(MatrixForm.rows_first((4, 8)), HalfScheme(torch.float16))
    matrix = packed(4, 8, Scheme(4, 4))
    for kind in (PackedModule, Int8DynamicLinear):
        use_kernels([matrix], kind, Offer([FAST]))
        assert matrix.kernel != FAST
    use_kernels([half, matrix], Int4Linear, Offer([FAST]))
    assert matrix.kernel == FAST
