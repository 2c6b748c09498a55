"""A stack of packed matrices reads like its dequantized tensor, and dequantizes only what is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.stacked_weight import StackedWeight, is_stack
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import Scheme

SHAPE = (4, 6, 10)


def packed(axis: int = -1) -> PackedMatrix:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return PackedMatrix.pack(weight, Scheme(group_size=4), MatrixForm.along(SHAPE, axis))[0]


@pytest.fixture(params=[-1, -2], ids=["inputs last", "inputs in the middle"])
def stack(request: pytest.FixtureRequest) -> StackedWeight:
    """A stack whose groups run along either inner axis."""
    return StackedWeight(packed(request.param))


@pytest.mark.parametrize("index", [0, 3, -1, -4, torch.tensor(2), torch.tensor(-3)])
def test_an_item_is_that_of_the_whole(stack: StackedWeight, index: Any) -> None:
    """Bit for bit."""
    assert torch.equal(stack[index], stack.dequantize()[index])


@pytest.mark.parametrize("index", [slice(1, 3), (0, slice(2)), torch.tensor([3, 0]), ..., (slice(None), 2), None])
def test_any_other_index_is_that_of_the_whole(stack: StackedWeight, index: Any) -> None:
    """As a tensor would take it."""
    assert torch.equal(stack[index], stack.dequantize()[index])


def test_an_item_dequantizes_nothing_else(stack: StackedWeight, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts are read one by one, and a model may have hundreds."""
    rows: list[int] = []
    original = PackedMatrix.dequantized_rows

    def counting(self: PackedMatrix, wanted: Any) -> Tensor:
        found = original(self, wanted)
        rows.append(len(found))
        return found

    monkeypatch.setattr(PackedMatrix, "dequantized_rows", counting)
    _ = stack[2]
    assert rows == [stack._packed.rows // SHAPE[0]]


@pytest.mark.parametrize("index", [4, -5])
def test_an_index_out_of_range_is_an_index_error(stack: StackedWeight, index: int) -> None:
    """Which also ends a loop over the stack."""
    with pytest.raises(IndexError, match=f"index {index} is out of range for a stack of 4"):
        stack[index]


@pytest.mark.parametrize("index", [torch.tensor(4), torch.tensor(-5)])
def test_a_tensor_out_of_range_is_an_index_error(stack: StackedWeight, index: Tensor) -> None:
    """It does not wrap around to another expert."""
    with pytest.raises(IndexError):
        stack[index]


def test_a_loop_ends(stack: StackedWeight) -> None:
    """``for matrix in self.up`` gives every matrix once."""
    assert torch.equal(torch.stack(list(stack)), stack.dequantize())


def test_it_stands_in_for_a_tensor(stack: StackedWeight) -> None:
    """In torch functions, operators, methods and attributes."""
    whole, x = stack.dequantize(), torch.randn(4, 3, 6)
    assert torch.equal(torch.bmm(x, stack), torch.bmm(x, whole))
    assert torch.equal(torch.einsum("bij,bjk->bik", x, stack), torch.einsum("bij,bjk->bik", x, whole))
    assert torch.equal(x @ stack, x @ whole)
    assert torch.equal(stack @ x.new_ones(10, 2), whole @ x.new_ones(10, 2))
    assert torch.equal(2 * stack + 1, 2 * whole + 1)
    assert torch.equal(stack * 2, 2 * whole)
    assert torch.equal(1 + stack, 1 + whole)
    assert torch.equal(torch.cat([stack, stack]), torch.cat([whole, whole]))
    assert torch.equal(stack.transpose(1, 2), whole.transpose(1, 2))
    assert (stack.shape, stack.dtype, stack.device, len(stack)) == (whole.shape, whole.dtype, whole.device, 4)
    assert repr(stack) == "StackedWeight(4x6x10, int4 g4 asymmetric float16)"


@pytest.mark.parametrize(
    "compute",
    [
        lambda w: w / 2,
        lambda w: 2 / w,
        lambda w: -w,
        lambda w: 1 - w,
        lambda w: w - 1,
        lambda w: w**2,
        lambda w: 2**w,
        lambda w: w > 0,
        lambda w: w == 0,
        lambda w: w != w.abs(),
        lambda w: abs(w),
        lambda w: w @ w.transpose(1, 2),
        lambda w: torch.ones(4, 3, 6) @ w,
        lambda w: w + w,
        lambda w: w[True],
    ],
)
def test_operators_are_those_of_the_whole(stack: StackedWeight, compute: Any) -> None:
    """Also between two stacks, and with the stack on the right."""
    assert torch.equal(compute(stack), compute(stack.dequantize()))


def test_what_is_no_attribute_of_a_tensor_is_an_attribute_error(stack: StackedWeight) -> None:
    """So that hasattr() and copy protocols get the truth."""
    assert not hasattr(stack, "no_such_thing")
    assert not hasattr(stack, "__no_such_protocol__")


def test_convolutions_are_no_stacks() -> None:
    """Their rows are output channels, each of which is one row."""
    weight = torch.randn(SHAPE)
    assert is_stack(packed())
    for form in (MatrixForm.rows_first(SHAPE), MatrixForm.transposed_convolution(SHAPE, 2), MatrixForm.along(SHAPE, 0)):
        assert not is_stack(PackedMatrix.pack(weight, Scheme(), form)[0])
