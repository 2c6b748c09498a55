"""Canonical INT4 and INT8 storage: what goes in comes out, everywhere a module may go."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monoquant.errors import ConfigError
from monoquant.modules.packed_matrix import FORMAT_VERSION, PackedMatrix
from monoquant.numerics import grouping
from monoquant.numerics.affine import dequantize, round_to_nearest
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.memory import stored_bytes
from monoquant.testing.strategies import schemes, weights
from monoquant.values import CODE_BITS, INT8_SCHEME, PACKABLE_DTYPES, SCALE_DTYPES, Scheme

normal = settings(deadline=None, max_examples=100)
dtypes = st.sampled_from(PACKABLE_DTYPES)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def bits_of(packed: PackedMatrix) -> dict[str, list[int]]:
    return {name: tensor.reshape(-1).view(torch.uint8).tolist() for name, tensor in packed.state_dict().items()}


@normal
@given(weight=weights(), scheme=schemes(), chunk=st.integers(1, 2000))
def test_packing_in_chunks_keeps_every_code(weight: torch.Tensor, scheme: Scheme, chunk: int) -> None:
    """However the rows are cut into chunks, the stored codes are those of the whole matrix, and the digest tells so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CHUNK_ELEMENTS", chunk)
        packed, intended = PackedMatrix.pack(weight, scheme)
        assert intended.holds(packed)
    expected = round_to_nearest(weight, scheme)
    stored = packed.read_rows(slice(0, len(weight)))
    assert torch.equal(stored.codes, expected.codes)
    assert torch.equal(stored.scale, expected.scale)
    assert torch.equal(stored.zero_point, expected.zero_point)


@normal
@given(weight=weights(), scheme=schemes())
def test_dequantize_is_bit_equal_to_the_algorithms_own(weight: torch.Tensor, scheme: Scheme) -> None:
    """The packed matrix stands for exactly the values the codes stand for, in the weight's dtype, and all finite."""
    packed, _ = PackedMatrix.pack(weight, scheme)
    codes = round_to_nearest(weight, scheme)
    values = dequantize(codes.codes, codes.scale, codes.zero_point, scheme.width(weight.shape[1]))
    assert packed.dequantize().dtype == weight.dtype
    assert torch.equal(packed.dequantize(), values.to(weight.dtype))
    assert torch.isfinite(packed.dequantize()).all()


@normal
@given(weight=weights(), scheme=schemes(), start=st.integers(0, 12), length=st.integers(0, 12))
def test_any_range_of_rows_can_be_read(weight: torch.Tensor, scheme: Scheme, start: int, length: int) -> None:
    """Reading some rows gives those rows of the whole, also from an odd start and past the end."""
    packed, _ = PackedMatrix.pack(weight, scheme)
    rows = slice(start, start + length)
    part, whole = packed.read_rows(rows), packed.read_rows(slice(None))
    assert torch.equal(part.codes, whole.codes[rows])
    assert torch.equal(part.scale, whole.scale[rows])
    assert torch.equal(part.zero_point, whole.zero_point[rows])
    assert torch.equal(packed.dequantized_rows(rows), packed.dequantize()[rows])


@normal
@given(weight=weights(max_rows=6, max_columns=40), scheme=schemes(), rows=st.lists(st.integers(0, 5), max_size=8))
def test_any_rows_can_be_read(weight: torch.Tensor, scheme: Scheme, rows: list[int]) -> None:
    """Rows are read by index as well, in any order and repeatedly, as an embedding looks them up."""
    packed, _ = PackedMatrix.pack(weight, scheme)
    indices = torch.tensor(rows, dtype=torch.int64) % len(weight)
    part, whole = packed.read_rows(indices), packed.read_rows(slice(None))
    assert torch.equal(part.codes, whole.codes[indices])
    assert torch.equal(part.scale, whole.scale[indices])
    assert torch.equal(part.zero_point, whole.zero_point[indices])
    assert torch.equal(packed.dequantized_rows(indices), packed.dequantize()[indices])


@normal
@given(weight=weights(max_rows=6, max_columns=40), scheme=schemes(), seed=st.integers(0, 1000))
def test_a_flipped_bit_is_seen(weight: torch.Tensor, scheme: Scheme, seed: int) -> None:
    """Flipping any bit that stands for something changes the digest, and is no longer what was intended."""
    packed, intended = PackedMatrix.pack(weight, scheme)
    digest = packed.digest()

    def differs() -> bool:
        return packed.digest() != digest and not intended.holds(packed)

    generator = torch.Generator().manual_seed(seed)
    column = int(torch.randint(packed.columns, (), generator=generator))
    codes = packed.qweight.view(torch.uint8)
    codes[0, column * scheme.bits // 8] ^= 1 << (scheme.bits * column % 8 + seed % scheme.bits)
    assert differs()
    packed, _ = PackedMatrix.pack(weight, scheme)
    assert not differs()
    packed.scale[-1, -1] *= 2
    assert differs()
    if not scheme.symmetric:
        packed, _ = PackedMatrix.pack(weight, scheme)
        assert packed.zero_point is not None
        packed.zero_point.view(torch.uint8).view(-1)[0] ^= 1 << seed % scheme.bits
        assert differs()


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(6, 256, 128), (5, 577, 64), (1, 1, 128), (3, 5, 2)])
def test_buffers_have_their_documented_form(
    rows: int, columns: int, group_size: int, symmetric: bool, scale_dtype: torch.dtype
) -> None:
    """Names, dtypes and sizes of the buffers are the file format: they may not drift."""
    packed, _ = PackedMatrix.pack(gaussian(rows, columns), Scheme(4, group_size, symmetric, scale_dtype))
    groups = -(-columns // group_size)
    expected = {"qweight": (torch.uint8, (rows, -(-columns // 2))), "scale": (scale_dtype, (rows, groups))}
    if not symmetric:
        expected["zero_point"] = (torch.uint8, (-(-rows * groups // 2),))
    expected["layout"] = (torch.int32, (6,))
    assert {name: (held.dtype, tuple(held.shape)) for name, held in packed.state_dict().items()} == expected
    assert not list(packed.parameters())
    stated = [FORMAT_VERSION, 4, rows, columns, min(group_size, columns), int(symmetric)]
    assert packed.layout.tolist() == stated


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("columns", "group_size", "groups"), [(577, 64, 10), (5, None, 1), (5, 128, 1)])
def test_buffers_of_8_bits_have_their_documented_form(
    columns: int, group_size: int | None, groups: int, symmetric: bool
) -> None:
    """INT8 codes and zero points are signed bytes, each in a place of its own."""
    packed, _ = PackedMatrix.pack(gaussian(3, columns), Scheme(8, group_size, symmetric, torch.float32))
    expected = {"qweight": (torch.int8, (3, columns)), "scale": (torch.float32, (3, groups))}
    if not symmetric:
        expected["zero_point"] = (torch.int8, (3, groups))
    expected["layout"] = (torch.int32, (6,))
    assert {name: (held.dtype, tuple(held.shape)) for name, held in packed.state_dict().items()} == expected
    stated = [FORMAT_VERSION, 8, 3, columns, min(group_size or columns, columns), int(symmetric)]
    assert packed.layout.tolist() == stated


def test_bits_per_weight() -> None:
    """Groups of 128 cost 4 bits, a 16-bit scale and a 4-bit zero_point: 4.15625 bits per weight, and no byte more."""
    packed, _ = PackedMatrix.pack(gaussian(64, 1024), Scheme())
    stored = stored_bytes([packed.qweight, packed.scale, packed.zero_point])
    assert stored * 8 / (64 * 1024) == 4.15625
    symmetric, _ = PackedMatrix.pack(gaussian(64, 1024), Scheme(symmetric=True))
    assert stored_bytes([symmetric.qweight, symmetric.scale]) * 8 / (64 * 1024) == 4.125
    wide, _ = PackedMatrix.pack(gaussian(64, 1024), INT8_SCHEME)
    assert stored_bytes([wide.qweight, wide.scale]) * 8 / (64 * 1024) == 8 + 32 / 1024


def test_layout_of_a_small_matrix() -> None:
    """Two rows with two groups each, worked out by hand: codes and zero points in nibbles, the even index low."""
    weight = torch.tensor([[0.0, 15.0, 0.0, -30.0, 0.0], [-8.0, 7.0, 30.0, 0.0, 12.0]])
    packed, _ = PackedMatrix.pack(weight, Scheme(group_size=2))
    assert packed.qweight.tolist() == [[0xF0, 0x0F, 0x00], [0xF0, 0x0F, 0x0F]]
    assert packed.scale.tolist()[0] == [1.0, 2.0, 1.0]
    assert packed.zero_point.tolist() == [0xF0, 0x80, 0x00]


def test_layout_of_a_small_matrix_of_8_bits() -> None:
    """Worked out by hand: signed codes as they are multiplied, zero points 128 less than their unsigned code."""
    weight = torch.tensor([[-127.5, 63.5, 127.5], [0.0, -63.75, 0.25]])
    packed, _ = PackedMatrix.pack(weight, INT8_SCHEME)
    assert packed.qweight.tolist() == [[-128, 64, 127], [0, -128, 1]]
    assert packed.scale.tolist() == [[1.0], [0.498046875]]
    packed, _ = PackedMatrix.pack(torch.tensor([[-1.0, 0.0, 254.0]]), Scheme(8, None))
    assert (packed.qweight.tolist(), packed.zero_point.tolist()) == ([[-128, -127, 127]], [[-127]])


def test_weights_of_any_form_come_back_in_their_shape() -> None:
    """A convolution's weight is packed by output channel, experts along their own axis, and both dequantize as such."""
    weight = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))
    for form in (
        MatrixForm.rows_first(weight.shape),
        MatrixForm.along(weight.shape, 1),
        MatrixForm.along((6, 4, 5), -1),
    ):
        packed, intended = PackedMatrix.pack(weight, Scheme(group_size=4), form)
        plain, _ = PackedMatrix.pack(form.to_matrix(weight), Scheme(group_size=4))
        assert packed.digest() == plain.digest()
        assert intended.holds(packed)
        assert (packed.rows, packed.columns) == (form.rows, form.columns)
        assert packed.dequantize().shape == weight.shape
        assert torch.equal(form.to_matrix(packed.dequantize()), plain.dequantize())
    with pytest.raises(ConfigError, match=r"shape \(6, 4, 5\) is no 6 x 20 matrix"):
        PackedMatrix(6, 20, Scheme(), form=MatrixForm.along(weight.shape, 1))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", PACKABLE_DTYPES, ids=str)
@pytest.mark.parametrize("bits", CODE_BITS)
def test_conversions_change_the_outside_only(bits: int, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    """Casting the module changes the dtype it answers in, and not one stored bit, however often it is cast."""
    packed, _ = PackedMatrix.pack(gaussian(6, 70), Scheme(bits, 32, scale_dtype=scale_dtype))
    before, values = bits_of(packed), packed.dequantize()
    for way_in in (lambda module: module.to(dtype), lambda module: module.bfloat16().half().to(dtype)):
        assert way_in(packed) is packed
        assert packed.scale.dtype == scale_dtype
        assert packed.dequantize().dtype == packed.dtype == dtype
        assert bits_of(packed) == before
    assert torch.equal(packed.float().dequantize(), values)
    assert torch.equal(packed.double().dequantize(), values.double())


def test_conversion_inside_a_parent_counts() -> None:
    """A model that is cast as a whole casts its packed matrices too."""
    packed, _ = PackedMatrix.pack(gaussian(4, 8), Scheme())
    torch.nn.Sequential(torch.nn.Sequential(packed)).half()
    assert packed.dequantize().dtype == torch.float16


@normal
@given(weight=weights(max_rows=8, max_columns=70), scheme=schemes(), dtype=dtypes)
def test_state_dict_round_trip(weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype) -> None:
    """A fresh module of the same kind that loads the state strictly has the same digest, with assign and without."""
    packed, intended = PackedMatrix.pack(weight, scheme)
    for assign in (False, True):
        fresh = PackedMatrix(*weight.shape, scheme, dtype=dtype)
        fresh.load_state_dict(copy.deepcopy(packed.state_dict()), strict=True, assign=assign)
        assert intended.holds(fresh)
        assert fresh.dequantize().dtype == dtype


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", CODE_BITS)
def test_copies_are_equal_and_separate(bits: int, symmetric: bool) -> None:
    """A deep copy and an unpickled module have the digest of the original, and share no memory with it."""
    packed, intended = PackedMatrix.pack(gaussian(6, 70), Scheme(bits, 32, symmetric))
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(packed), torch.load(buffer, weights_only=False)):
        assert intended.holds(twin)
        assert (twin.scheme, twin.dtype, repr(twin)) == (packed.scheme, packed.dtype, repr(packed))
        twin.qweight.zero_()
        assert intended.holds(packed)


def test_meta_module_is_filled_by_loading() -> None:
    """A module built without memory takes a state dict after to_empty, and also by assignment."""
    packed, intended = PackedMatrix.pack(gaussian(6, 70), Scheme(group_size=32))
    for through_empty in (True, False):
        skeleton = PackedMatrix(6, 70, Scheme(group_size=32), device="meta", dtype=torch.bfloat16)
        assert all(tensor.is_meta for tensor in skeleton.buffers())
        module = skeleton.to_empty(device="cpu") if through_empty else skeleton
        module.load_state_dict(packed.state_dict(), strict=True, assign=not through_empty)
        assert intended.holds(module)
        assert module.dequantize().dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rows", "columns", "scheme", "named"),
    [
        (6, 70, Scheme(group_size=35), "layout"),
        (6, 70, Scheme(8, group_size=32), "layout"),
        (6, 70, Scheme(group_size=32, symmetric=True), "layout"),
        (6, 69, Scheme(group_size=32), "layout"),
        (7, 70, Scheme(group_size=32), "layout"),
        (6, 70, Scheme(group_size=32, scale_dtype=torch.bfloat16), "scale"),
        (6, 70, Scheme(group_size=32, scale_dtype=torch.float32), "scale"),
    ],
    ids=str,
)
@pytest.mark.parametrize("assign", [False, True])
def test_states_that_mean_something_else_are_refused(
    rows: int, columns: int, scheme: Scheme, named: str, assign: bool
) -> None:
    """A state of other bits, shape, groups, symmetry or scale dtype is refused by name, and nothing is loaded."""
    other, _ = PackedMatrix.pack(gaussian(rows, columns), scheme)
    module, intended = PackedMatrix.pack(gaussian(6, 70, seed=1), Scheme(group_size=32))
    with pytest.raises(RuntimeError, match=f"inner.{named}"):
        torch.nn.ModuleDict({"inner": module}).load_state_dict(
            {f"inner.{name}": tensor for name, tensor in other.state_dict().items()}, assign=assign
        )
    assert intended.holds(module)


@pytest.mark.parametrize("name", ["qweight", "scale", "zero_point", "layout"])
def test_an_incomplete_state_is_refused(name: str) -> None:
    """A missing buffer is an error that names it, as for any module."""
    packed, _ = PackedMatrix.pack(gaussian(4, 64), Scheme())
    state = packed.state_dict()
    del state[name]
    with pytest.raises(RuntimeError, match=name):
        PackedMatrix(4, 64, Scheme()).load_state_dict(state)


@pytest.mark.parametrize("name", ["qweight", "zero_point"])
@pytest.mark.parametrize("bits", CODE_BITS)
def test_codes_of_another_dtype_are_refused(bits: int, name: str) -> None:
    """Codes stored as floats by a careless cast are refused instead of being converted silently."""
    packed, _ = PackedMatrix.pack(gaussian(4, 64), Scheme(bits))
    state = packed.state_dict()
    state[name] = state[name].float()
    with pytest.raises(RuntimeError, match=f"{name} has dtype torch.float32"):
        PackedMatrix(4, 64, Scheme(bits)).load_state_dict(state)


def test_packing_leaves_the_weight_alone() -> None:
    """The float weight is only read, and no graph is kept of it."""
    weight = torch.nn.Parameter(gaussian(8, 64))
    before = weight.detach().clone()
    packed, _ = PackedMatrix.pack(weight, Scheme())
    assert torch.equal(weight, before)
    assert not packed.dequantize().requires_grad
    assert not any(tensor.requires_grad for tensor in packed.buffers())


def test_non_contiguous_weights_pack_like_contiguous_ones() -> None:
    """A transposed weight gives the same codes as its contiguous copy."""
    weight = gaussian(70, 12).T
    packed, _ = PackedMatrix.pack(weight, Scheme(group_size=32))
    assert packed.digest() == PackedMatrix.pack(weight.clone(), Scheme(group_size=32))[0].digest()
