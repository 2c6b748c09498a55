"""Two codes in a byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.numerics.packing import pack_nibbles, packed_size, unpack_nibbles

quick = settings(deadline=None, max_examples=100)


@st.composite
def code_tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = [*draw(st.lists(st.integers(0, 5), max_size=2)), draw(st.integers(0, 33))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return torch.randint(0, 16, shape, dtype=torch.uint8, generator=generator)


@quick
@given(codes=code_tensors())
def test_unpacking_undoes_packing(codes: torch.Tensor) -> None:
    """Codes of any shape and any count, odd and empty ones included, survive the round trip."""
    packed = pack_nibbles(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*codes.shape[:-1], packed_size(codes.shape[-1]))
    assert torch.equal(unpack_nibbles(packed, codes.shape[-1]), codes)


@quick
@given(codes=code_tensors())
def test_packing_leaves_its_input_alone(codes: torch.Tensor) -> None:
    """Packing reads the codes and never writes to them."""
    before = codes.clone()
    pack_nibbles(codes)
    assert torch.equal(codes, before)


def test_even_index_is_the_low_nibble() -> None:
    """The byte layout is part of the file format: even index low, odd index high, an odd end padded with zero."""
    codes = torch.tensor([[1, 2, 3, 15, 7], [15, 0, 0, 15, 8]], dtype=torch.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0xF3, 0x07], [0x0F, 0xF0, 0x08]]


def test_all_bytes_unpack() -> None:
    """Each of the 256 bytes means its two nibbles."""
    packed = torch.arange(256, dtype=torch.uint8)
    expected = [nibble for byte in range(256) for nibble in (byte % 16, byte // 16)]
    assert unpack_nibbles(packed, 512).tolist() == expected


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (2, 1), (3, 2), (576, 288), (577, 289)])
def test_packed_size_rounds_up(count: int, size: int) -> None:
    """An odd code takes a byte of its own."""
    assert packed_size(count) == size


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("count", [1, 6, 7])
def test_unpacking_can_be_traced(count: int) -> None:
    """TorchScript has no views of another dtype."""
    codes = torch.randint(0, 16, (3, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    packed = pack_nibbles(codes)
    traced = torch.jit.trace(lambda buffer: unpack_nibbles(buffer, count), packed)
    assert torch.equal(traced(packed), codes)
