"""Rounding with torch alone gives the bytes that the definition gives, on every shape, dtype and scheme."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.kernels.base import Codes
from monoquant.kernels.rounding import PortableRounding
from monoquant.measurement import measure_weight
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics import grouping
from monoquant.numerics.affine import GroupCodes, round_to_nearest
from monoquant.numerics.metrics import Energy
from monoquant.testing.strategies import schemes, weights
from monoquant.values import PACKABLE_DTYPES, SCALE_DTYPES, Scheme

KERNEL = PortableRounding()


def rounded(values: torch.Tensor, scheme: Scheme) -> tuple[PackedMatrix, Energy | None]:
    packed = PackedMatrix(*values.shape, scheme, dtype=values.dtype)
    for buffer in packed.buffers():
        if buffer is not packed.layout:
            buffer.view(torch.uint8).fill_(0xA5)  # all of it must be written
    return packed, KERNEL.pack(values, scheme, packed.codes_of(slice(0, len(values))), measured=True)


def defined(values: torch.Tensor, scheme: Scheme) -> PackedMatrix:
    packed = PackedMatrix(*values.shape, scheme, dtype=values.dtype)
    packed.write_rows(slice(0, len(values)), round_to_nearest(values, scheme))
    return packed


def raw(packed: PackedMatrix) -> dict[str, list[int]]:
    return {name: held.reshape(-1).view(torch.uint8).tolist() for name, held in packed.state_dict().items()}


def assert_measured(energy: Energy | None, weight: torch.Tensor, packed: PackedMatrix) -> None:
    """To the last digits but one: in what order a dot product sums depends on where its vectors begin."""
    expected = measure_weight(weight, packed).weight
    assert energy is not None
    assert (energy.signal, energy.noise) == pytest.approx((expected.signal, expected.noise), rel=1e-12)


@settings(deadline=None, max_examples=300)
@given(weight=weights(max_rows=9), scheme=schemes(), chunk=st.integers(1, 400), stride=st.sampled_from([1, 2, -1]))
def test_the_bytes_are_those_of_the_definition(weight: torch.Tensor, scheme: Scheme, chunk: int, stride: int) -> None:
    """Also for strided rows and transposed weights, and however the rows are cut."""
    if stride == 2:
        weight = weight.repeat_interleave(2, 0)[::2]
    elif stride == -1:
        weight = weight.T.contiguous().T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CHUNK_ELEMENTS", chunk)
        packed, energy = rounded(weight, scheme)
        assert raw(packed) == raw(defined(weight, scheme))
        assert_measured(energy, weight, packed)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
def test_ties_and_extremes(bits: int, symmetric: bool, scale_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Halves between two codes, groups on one side of zero, all zeros, and values that are hardly any."""
    generator = torch.Generator().manual_seed(bits)
    ties = torch.randint(-30, 31, (6, 33), generator=generator) / 2
    one_sided, tiny = torch.rand(3, 33, generator=generator) + 1, torch.randn(3, 33, generator=generator) * 1e-7
    rows = torch.cat([ties, one_sided, -one_sided, torch.zeros(1, 33), tiny, ties * 1000]).to(dtype)
    for group_size in (None, 1, 3, 16, 33):
        scheme = Scheme(bits, group_size, symmetric, scale_dtype)
        packed, energy = rounded(rows, scheme)
        assert raw(packed) == raw(defined(rows, scheme))
        assert_measured(energy, rows, packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
def test_a_value_that_is_not_finite_shows_in_the_signal(value: float, dtype: torch.dtype) -> None:
    """Whoever reads a weight once, to pack it, can tell without reading it again."""
    weight = torch.ones(5, 40, dtype=dtype)
    weight[3, 17] = value
    _, energy = rounded(weight, Scheme(group_size=16))
    assert energy is not None
    assert not energy.signal < float("inf")


def test_energies_are_only_measured_on_request() -> None:
    packed = PackedMatrix(2, 8, Scheme())
    assert KERNEL.pack(torch.ones(2, 8), Scheme(), packed.codes_of(slice(0, 2)), measured=False) is None


def test_it_takes_what_can_be_packed() -> None:
    device = torch.device("cpu")
    assert all(KERNEL.obstacle(dtype, device, Scheme()) is None for dtype in PACKABLE_DTYPES)
    assert "int32" in str(KERNEL.obstacle(torch.int32, device, Scheme()))


class Wrong(PortableRounding):
    """Writes a code that is next to the nearest."""

    def pack(self, values: torch.Tensor, scheme: Scheme, codes: Codes, *, measured: bool) -> Energy | None:
        energy = super().pack(values, scheme, codes, measured=measured)
        codes.qweight[-1, -1] ^= 1
        return energy


@pytest.mark.parametrize("bits", [4, 8])
def test_a_kernel_that_rounds_otherwise_is_found_out(bits: int) -> None:
    """What a packed matrix must hold comes from the definition, not from who packed it."""
    weight, scheme = torch.randn(3, 12, generator=torch.Generator().manual_seed(0)), Scheme(bits)
    assert PackedMatrix.pack(weight, scheme)[1].holds(PackedMatrix.pack(weight, scheme)[0])
    packed, intended = PackedMatrix.pack(weight, scheme, rounding=Wrong())
    assert not intended.holds(packed)


def test_codes_of_a_range_are_views() -> None:
    """Zero_points of rows 2 and 3, with three groups each, begin at byte 3."""
    packed = PackedMatrix(5, 12, Scheme(group_size=4))
    part = packed.codes_of(slice(2, 4))
    assert part.zero_point is not None
    assert (part.rows, part.columns, part.group_size, len(part.zero_point)) == (2, 12, 4, 3)
    values = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    KERNEL.pack(values, packed.scheme, part, measured=False)
    found, expected = packed.read_rows(slice(2, 4)), round_to_nearest(values, packed.scheme)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.zero_point, expected.zero_point)
    assert isinstance(found, GroupCodes)
    assert not packed.read_rows(slice(0, 2)).codes.any()
