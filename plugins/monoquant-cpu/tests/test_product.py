"""Native products on every instruction set: odd sizes, group sizes, offsets and numbers of threads."""

from __future__ import annotations

import math
from typing import Literal

import monoquant as mq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monoquant.modules.packed_matrix import PackedMatrix
from torch import Tensor

from monoquant_cpu import Library

Kind = Literal["int8", "float"]
KINDS: tuple[Kind, ...] = ("int8", "float")
ALLOWED = {"int8": 1e-2, "float": 1e-6}

schemes = st.builds(
    mq.Scheme,
    st.just(4),
    st.sampled_from([128, 64, 32, 16, 256, None]) | st.integers(1, 300),
    st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(rows: int, columns: int, scheme: mq.Scheme, seed: int = 0) -> PackedMatrix:
    return PackedMatrix.pack(normal(rows, columns, seed=seed), scheme)[0]


matrices = st.builds(packed, st.integers(1, 90), st.integers(1, 700), schemes, st.integers(0, 5))


def product(
    library: Library,
    kind: Kind,
    inputs: Tensor,
    matrix: PackedMatrix,
    bias: Tensor | None = None,
    threads: int = 1,
    isa: str | None = None,
) -> Tensor:
    buffers = (matrix.qweight, matrix.scale, matrix.zero_point)
    sizes = (matrix.columns, matrix.group_size)
    return library.product(kind, inputs, *buffers, *sizes, bias, threads=threads, isa=isa)


def relative_error(found: Tensor, inputs: Tensor, matrix: PackedMatrix, bias: Tensor | None = None) -> float:
    """Norm of the error over the norm that the product has where its terms have random signs."""
    weight = matrix.dequantize().double()
    added = torch.zeros(len(weight)).double() if bias is None else bias.double()
    expected = inputs.double() @ weight.T + added
    size = (inputs.double().square() @ weight.square().T + added.square()).sum().sqrt()
    return float((found.double() - expected).norm() / size.clamp_min(1e-300))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data(), matrix=matrices, count=st.sampled_from([0, 1, 2, 3, 5, 8, 13, 31, 70, 200]), bias=st.booleans())
def test_any_matrix_on_any_instruction_set(
    library: Library, kind: Kind, data: st.DataObject, matrix: PackedMatrix, count: int, bias: bool
) -> None:
    """The dequantized matrix's, to within what the kernel declares for many outputs; few of them scatter more."""
    isa = data.draw(st.sampled_from(library.isas))
    inputs, added = normal(count, matrix.columns, seed=7), normal(matrix.rows, seed=8) if bias else None
    found = product(library, kind, inputs, matrix, added, data.draw(st.integers(1, 4)), isa)
    assert found.shape == (count, matrix.rows)
    assert relative_error(found, inputs, matrix, added) < ALLOWED[kind] * (1 + 3 / math.sqrt(max(found.numel(), 1)))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(matrix=matrices, count=st.sampled_from([1, 4, 33, 150]))
def test_threads_never_change_a_bit(library: Library, kind: Kind, matrix: PackedMatrix, count: int) -> None:
    """Whoever runs a model on more cores gets the same numbers."""
    inputs = normal(count, matrix.columns, seed=7)
    one, *others = (product(library, kind, inputs, matrix, threads=threads) for threads in (1, 2, 3, 7))
    assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 9, 80])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_broken_inputs_break_their_own_row_only(library: Library, kind: Kind, count: int, broken: float) -> None:
    """No output of a row with nan or inf is finite, and no other row notices."""
    matrix = packed(70, 300, mq.Scheme())
    inputs = normal(count, 300, seed=7)
    inputs[count // 2, 257] = broken
    for isa in library.isas:
        finite = torch.isfinite(product(library, kind, inputs, matrix, isa=isa))
        assert not finite[count // 2].any()
        assert finite.all(1).sum() == count - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-35, 1e-30, 1e-5, 1.0, 1e6, 1e30])
def test_inputs_of_any_size(library: Library, kind: Kind, size: float) -> None:
    """The error is relative: nothing under- or overflows on the way that would not in float32."""
    matrix, inputs = packed(40, 260, mq.Scheme()), normal(9, 260, seed=7) * size
    for isa in library.isas:
        for count in (1, 3, 9):
            found = product(library, kind, inputs[:count], matrix, isa=isa)
            assert relative_error(found, inputs[:count], matrix) < ALLOWED[kind]


@pytest.mark.parametrize("scheme", [mq.Scheme(), mq.Scheme(4, 32, symmetric=False), mq.Scheme(4, None)])
def test_inputs_of_one_sign(library: Library, scheme: mq.Scheme) -> None:
    """The codes of the weights are positive, so sums of their products are far larger than what they leave."""
    matrix, inputs = packed(60, 4096, scheme), 3 + normal(9, 4096, seed=7).abs()
    for isa in library.isas:
        for count in (1, 3, 9):
            found = product(library, "float", inputs[:count], matrix, isa=isa)
            assert relative_error(found, inputs[:count], matrix) < ALLOWED["float"]


def test_floats_of_very_different_sizes(library: Library) -> None:
    """Each group of inputs has digits of its own, and each row its own size."""
    matrix, inputs = packed(60, 512, mq.Scheme(4, 128)), normal(4, 512, seed=7)
    inputs *= torch.tensor([[1.0], [1e-30], [1e20], [1e-5]])
    inputs[:, 128:256] *= 1e-4
    for isa in library.isas:
        for count in (1, 2, 4):
            found = product(library, "float", inputs[:count], matrix, isa=isa)
            for row in range(count):
                one, kept = slice(row, row + 1), inputs[row : row + 1]
                assert relative_error(found[one], kept, matrix) < ALLOWED["float"]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_give_the_bias(library: Library, kind: Kind) -> None:
    """Groups without a largest value divide nothing by zero."""
    matrix, bias = packed(40, 260, mq.Scheme()), normal(40, seed=8)
    for count in (1, 50):
        assert torch.equal(product(library, kind, torch.zeros(count, 260), matrix, bias), bias.expand(count, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_outliers_cost_their_own_group_only(library: Library, kind: Kind) -> None:
    """A value a thousand times as large as the others takes the digits of its group, and of no other."""
    matrix, inputs = packed(40, 512, mq.Scheme(4, 128)), normal(20, 512, seed=7)
    matrix.qweight[:, :64] = 0x88
    assert matrix.zero_point is not None
    zero_points = torch.full((40, 4), 8, dtype=torch.uint8)
    matrix.zero_point.copy_(zero_points.flatten()[::2] | (zero_points.flatten()[1::2] << 4))
    inputs[:, 3] = 1000  # meets weights of zero
    assert relative_error(product(library, kind, inputs, matrix), inputs[:, 128:].nan_to_num(), _without(matrix)) < 1e-2


def _without(matrix: PackedMatrix) -> PackedMatrix:
    """The same matrix without its first 128 columns, which are zero."""
    kept = PackedMatrix(matrix.rows, matrix.columns - 128, mq.Scheme(4, 128))
    kept.qweight.copy_(matrix.qweight[:, 64:])
    kept.scale.copy_(matrix.scale[:, 1:])
    assert kept.zero_point is not None
    kept.zero_point.fill_(0x88)
    return kept
