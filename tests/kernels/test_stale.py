"""What a kernel derived is used with the buffers that it was derived from, and with no others."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from monoquant.errors import InputError
from monoquant.kernels.choice import Offer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.values import Scheme
from tests.kernels import crooked
from tests.kernels.matrices import normal, packed

INPUTS = normal(3, 64)


def in_place(matrix: PackedMatrix) -> None:
    matrix.qweight.bitwise_xor_(17)


def another_tensor(matrix: PackedMatrix) -> None:
    matrix.qweight = matrix.qweight ^ 17


def another_zero_point(matrix: PackedMatrix) -> None:
    assert matrix.zero_point is not None
    matrix.zero_point.bitwise_xor_(17)


@pytest.mark.parametrize("change", [in_place, another_tensor, another_zero_point])
def test_buffers_that_were_written_to(change: Callable[[PackedMatrix], None]) -> None:
    """The product is that of the new codes, and choosing anew derives anew."""
    matrix, offer = packed(20, 64, Scheme(4, 32)), Offer([crooked.Fast()])
    matrix.use(offer)
    before = matrix._derived[0].clone()
    change(matrix)
    assert torch.allclose(matrix.multiplied(INPUTS, None), INPUTS @ matrix.dequantize().t(), atol=1e-5)
    matrix.use(offer)
    assert torch.equal(matrix._derived[0], matrix.qweight.sum(1))
    assert change is another_zero_point or not torch.equal(matrix._derived[0], before)
    assert torch.allclose(matrix.multiplied(INPUTS, None), INPUTS @ matrix.dequantize().t(), atol=1e-5)


def test_buffers_that_stand_in_for_others() -> None:
    """torch.func.functional_call computes with what it is given."""
    matrix, other = packed(20, 64, Scheme(4, 32)), packed(20, 64, Scheme(4, 32), seed=1)
    matrix.use(Offer([crooked.Fast()]))

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = matrix

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.matrix.multiplied(inputs, None)

    state = {f"matrix.{name}": tensor for name, tensor in other.state_dict().items()}
    found = torch.func.functional_call(Call(), state, (INPUTS,))
    assert torch.equal(found, other.multiplied(INPUTS, None))


def test_buffers_that_count_no_versions() -> None:
    """Copies that are made in inference mode multiply as others do."""
    matrix = packed(20, 64, Scheme(4, 32))
    matrix.use(Offer([crooked.Fast()]))
    with torch.inference_mode():
        twin = copy.deepcopy(matrix)
    assert twin.qweight.is_inference()
    assert torch.equal(twin.multiplied(INPUTS, None), matrix.multiplied(INPUTS, None))


def test_a_lone_number_is_no_input() -> None:
    """It has no features."""
    with pytest.raises(InputError, match=r"shape \(\)"):
        packed(4, 8, Scheme(4, 4)).multiplied(torch.tensor(1.0), None)


def test_buffers_that_are_assigned_with_strides() -> None:
    """Kernels take contiguous ones."""
    matrix, given = packed(20, 64, Scheme(4, 32)), packed(20, 64, Scheme(4, 32), seed=1)
    state = {
        name: value.t().contiguous().t() if value.dim() == 2 else value for name, value in given.state_dict().items()
    }
    matrix.load_state_dict(state, assign=True)
    assert all(buffer.is_contiguous() for buffer in matrix.buffers())
    assert torch.equal(matrix.dequantize(), given.dequantize())
