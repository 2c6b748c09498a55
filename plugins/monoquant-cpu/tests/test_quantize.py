"""Rows quantized by native kernels against PackedMatrix.pack, bit for bit."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monoquant import Scheme
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics.affine import dequantize
from torch import Generator, Tensor

from monoquant_cpu import Library

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MAGNITUDES = [0.0, 1e-45, 1e-39, 6e-8, 1e-4, 0.02, 1.0, 8.0, 15.0, 500.0, 6e4, 2e6, 3e38]
"""From nothing over subnormal floats and scales to scales that float16 does not hold."""


@attrs.frozen
class Case:
    """A matrix, its values within +- magnitude and shifted, in the middle of a larger one.

    With ``levels``, values are whole multiples of ``magnitude / levels``: their range may be one of a scale, too.
    """

    rows: int
    columns: int
    scheme: Scheme
    dtype: torch.dtype = torch.float32
    before: int = 0
    after: int = 0
    magnitude: float = 1.0
    shift: float = 0.0
    zeros: float = 0.0
    levels: int = 0
    seed: int = 0

    def values(self) -> Tensor:
        generator = Generator().manual_seed(self.seed)
        shape = self.rows, self.before + self.columns + self.after
        limit = torch.finfo(self.dtype).max
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 + self.shift
        if self.levels:
            values = (values * self.levels).round_() / self.levels
        values *= (torch.rand(shape, generator=generator) >= self.zeros) * self.magnitude
        return values.clamp_(-limit, limit).to(self.dtype)[:, self.before : self.before + self.columns]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    columns = draw(st.one_of(st.integers(1, 70), st.sampled_from([96, 128, 200, 255, 256, 513, 4200])))
    sizes = st.sampled_from([1, 2, 3, 16, 31, 32, 33, 64, 128, 256, None])
    scheme = Scheme(
        4, draw(st.one_of(sizes, st.integers(1, columns))), draw(st.booleans()), draw(st.sampled_from(DTYPES))
    )
    return Case(
        draw(st.integers(1, 9)),
        columns,
        scheme,
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 3)),
        draw(st.integers(0, 3)),
        draw(st.sampled_from(MAGNITUDES)),
        draw(st.sampled_from([0.0, 0.5, 1.5, -1.5, -0.01])),
        draw(st.sampled_from([0.0, 0.5, 0.97])),
        draw(st.sampled_from([0, 0, 8, 15, 64])),
        draw(st.integers(0, 2**32)),
    )


def packed(
    library: Library, values: Tensor, scheme: Scheme, isa: str, threads: int, energies: Tensor | None = None
) -> PackedMatrix:
    matrix = PackedMatrix(values.shape[0], values.shape[1], scheme, dtype=values.dtype)
    for buffer in (matrix.qweight, matrix.scale, matrix.zero_point):
        if buffer is not None:
            buffer.view(torch.uint8).fill_(0xA5)  # whatever was there before must not show
    library.quantize_rows(
        values, matrix.group_size, matrix.qweight, matrix.scale, matrix.zero_point,
        threads=threads, energies=energies, isa=isa,
    )  # fmt: skip
    return matrix


def assert_equal(found: PackedMatrix, expected: PackedMatrix) -> None:
    buffers = dict(found.named_buffers())
    for name, buffer in expected.named_buffers():
        assert torch.equal(buffers[name].view(torch.uint8), buffer.view(torch.uint8)), name


def energies_of(values: Tensor, matrix: PackedMatrix) -> Tensor:
    codes = matrix.read_rows(slice(None))
    dequantized = dequantize(codes.codes, codes.scale, codes.zero_point, matrix.group_size)
    wide = values.float()
    return torch.stack((wide.double().square().sum(), (wide - dequantized).double().square().sum()))


def assert_close(found: Tensor, expected: Tensor, before: float = 0.0) -> None:
    """Sums that were added to what was there before."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12 * before, equal_nan=True)


@settings(deadline=None, max_examples=400)
@given(case=cases(), threads=st.integers(1, 4), measured=st.booleans())
@example(case=Case(1, 1, Scheme(4, 1, False)), threads=1, measured=True)
@example(case=Case(3, 4096, Scheme(4, 128, False), magnitude=2e6), threads=1, measured=False)
@example(case=Case(7, 33, Scheme(4, 11, False), magnitude=0.0), threads=2, measured=True)
def test_the_same_bits_as_pack(library: Library, case: Case, threads: int, measured: bool) -> None:
    values = case.values()
    expected, _ = PackedMatrix.pack(values, case.scheme)
    for isa in library.isas:
        energies = torch.zeros(2, dtype=torch.float64) if measured else None
        assert_equal(packed(library, values, case.scheme, isa, threads, energies), expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(1001, 513, 103), (4, 200_001, 128), (9000, 33, 32)])
def test_many_portions(library: Library, rows: int, columns: int, group_size: int, symmetric: bool) -> None:
    """Threads share a matrix, also where an odd number of zero points belongs to each row."""
    case = Case(rows, columns, Scheme(4, group_size, symmetric))
    values = case.values()
    expected, _ = PackedMatrix.pack(values, case.scheme)
    for isa in library.isas:
        for threads in (1, 2, 4):
            assert_equal(packed(library, values, case.scheme, isa, threads), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_and_ends(library: Library, dtype: torch.dtype) -> None:
    """Every half step of every step that is a power of two: to the even code, and never beyond the last."""
    steps = torch.arange(-16, 17).div(2).repeat(8, 1) * torch.logspace(-4, 3, 8, base=2).unsqueeze(1)
    for symmetric in (False, True):
        for part in (steps, steps[:, :-1], steps.clamp(min=0), steps.clamp(max=0), -steps[:, :-1]):
            values = part.to(dtype)
            scheme = Scheme(4, None, symmetric)
            expected, _ = PackedMatrix.pack(values, scheme)
            for isa in library.isas:
                energies = torch.zeros(2, dtype=torch.float64)
                assert_equal(packed(library, values, scheme, isa, 1, energies), expected)
                assert_close(energies, energies_of(values, expected))


@settings(deadline=None, max_examples=100)
@given(case=cases(), before=st.sampled_from([0.0, 12.5]))
def test_energies(library: Library, case: Case, before: float) -> None:
    values = case.values()
    expected, _ = PackedMatrix.pack(values, case.scheme)
    for isa in library.isas:
        energies = torch.full((2,), before, dtype=torch.float64)
        packed(library, values, case.scheme, isa, 1, energies)
        assert_close(energies - before, energies_of(values, expected), before)


def test_energies_do_not_depend_on_threads(library: Library) -> None:
    values = Case(3000, 515, Scheme()).values()
    found = set()
    for threads in (1, 2, 3, 4):
        energies = torch.zeros(2, dtype=torch.float64)
        packed(library, values, Scheme(4, 103), library.isas[0], threads, energies)
        found.add(tuple(energies.tolist()))
    assert len(found) == 1


def test_rows_of_a_larger_matrix(library: Library) -> None:
    """A caller may give ranges of rows that start at an even one, as write_rows takes them."""
    scheme = Scheme(4, 32)
    values = Case(7, 65, scheme).values()
    expected, _ = PackedMatrix.pack(values, scheme)
    found = PackedMatrix(7, 65, scheme)
    assert found.zero_point is not None
    for rows, nibbles in ((slice(0, 4), slice(0, 6)), (slice(4, 7), slice(6, 11))):
        library.quantize_rows(
            values[rows], found.group_size, found.qweight[rows], found.scale[rows], found.zero_point[nibbles]
        )
    assert_equal(found, expected)
