"""A weight in canonical INT4 or INT8 storage, the part that all packed layers share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from monoquant.errors import ConfigError, InputError
from monoquant.kernels.base import Codes, ProductKernel, RoundingKernel, located, product_of
from monoquant.kernels.choice import PORTABLE_ROUNDING, Offer
from monoquant.kernels.op import AT_PORTABLE, PORTABLE, multiply
from monoquant.kernels.portable import dequantized, zero_points
from monoquant.modules.packed_weight import Intended, PackedWeight, hash_tensors, same_bits
from monoquant.numerics.affine import GroupCodes, round_to_nearest
from monoquant.numerics.grouping import group_count, row_chunks, select_rows
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.memory import stored_bytes
from monoquant.numerics.packing import pack_nibbles, packed_size, unpack_nibbles
from monoquant.values import Scheme

FORMAT_VERSION = 1
_SIGN = 128
"""INT8 codes are stored signed: what integer kernels take, and for symmetric weights the value itself."""
_OF_THIS_MACHINE = ("_kernel", "_derived", "_derived_from", "_place")
_Marks = tuple[tuple[int, int] | None, ...]


def storage_bytes(rows: int, columns: int, scheme: Scheme) -> int:
    """Bytes of the buffers of a packed matrix.

    Args:
        rows: Output features, >= 1.
        columns: Input features, >= 1.
        scheme: Bits, group size, symmetry and scale dtype.
    """
    packed = PackedMatrix(rows, columns, scheme, device="meta")
    return stored_bytes(packed.buffers())


def _check_sizes(rows: int, columns: int) -> None:
    for what, size in (("output", rows), ("input", columns)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{size!r} {what} features: give a whole number >= 1")


class PackedMatrix(PackedWeight):
    """A ``[rows, columns]`` matrix of 4- or 8-bit codes with a scale and zero_point per group of columns.

    The buffers are the same bytes on every machine; nothing that depends on a device or an instruction set is kept.

    Args:
        rows: Output features, >= 1.
        columns: Input features, >= 1.
        scheme: Bits, group size, symmetry and scale dtype.
        dtype: dtype of the matrix when dequantized; default torch.float32. Follows ``.to(dtype)``.
        device: Where the buffers live; default: torch's default device.
        form: The shape in which it is dequantized; default: the matrix itself.

    Attributes:
        qweight: 4 bits: uint8 ``[rows, ceil(columns / 2)]``, the low nibble is the even column. 8 bits: int8
            ``[rows, columns]``, the code minus 128.
        scale: ``[rows, groups]`` in the scheme's scale dtype; ``.to(dtype)`` never changes it.
        zero_point: 4 bits: uint8 ``[ceil(rows * groups / 2)]``, nibbles in row-major order. 8 bits: int8
            ``[rows, groups]``, minus 128. None when symmetric.
        layout: int32 ``[6]``: format version, bits, rows, columns, group size, symmetric. Makes a state dict
            say what its bytes mean.
    """

    qweight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    scheme: Scheme
    kept_exact = ("scale",)

    def __init__(
        self,
        rows: int,
        columns: int,
        scheme: Scheme,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        form: MatrixForm | None = None,
    ) -> None:
        _check_sizes(rows, columns)
        if not isinstance(scheme, Scheme):
            raise ConfigError(f"scheme={scheme!r}: give a Scheme")
        super().__init__(form or MatrixForm.rows_first((rows, columns)), scheme.storage, dtype)
        if (self.form.rows, self.form.columns) != (rows, columns):
            raise ConfigError(f"a weight of shape {self.form.shape} is no {rows} x {columns} matrix in that form")
        self.inputs_first = _inputs_first(self.form)
        self.group_size = self.scheme.width(columns)
        self.groups = group_count(columns, self.group_size)
        nibbles, code = scheme.bits == 4, self._code_dtype
        width = packed_size(columns) if nibbles else columns
        self.register_buffer("qweight", torch.zeros(rows, width, dtype=code, device=device))
        self.register_buffer("scale", torch.ones(rows, self.groups, dtype=scheme.scale_dtype, device=device))
        zero_point = None
        if not scheme.symmetric:
            size = (packed_size(rows * self.groups),) if nibbles else (rows, self.groups)
            zero_point = torch.zeros(size, dtype=code, device=device)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("layout", torch.tensor(self.layout_values(), dtype=torch.int32, device=device))
        self._offer, self._place = Offer(), AT_PORTABLE
        self._kernel: ProductKernel = PORTABLE
        self._derived: tuple[Tensor, ...] = ()
        self._derived_from: _Marks = ()

    @classmethod
    def pack(
        cls,
        weight: Tensor,
        scheme: Scheme,
        form: MatrixForm | None = None,
        rounding: RoundingKernel = PORTABLE_ROUNDING,
    ) -> tuple[PackedMatrix, Intended]:
        """Quantize a weight to the nearest codes and pack it.

        Args:
            weight: A tensor of the form's shape, any real float dtype, finite.
            scheme: Bits, group size, symmetry and scale dtype.
            form: How the tensor is a matrix; default: it is one.
            rounding: Who does it; it must be able to. Default: torch.

        Returns:
            The packed matrix, and what it must hold: what :func:`round_to_nearest` gives, whoever packed it. That is
            computed when it is asked for, and keeps the weight alive.
        """
        form = form or MatrixForm.rows_first(weight.shape)
        matrix = form.to_matrix(weight.detach())
        packed = cls(form.rows, form.columns, scheme, dtype=weight.dtype, device=weight.device, form=form)
        rounding.pack(matrix, scheme, packed.codes, measured=False)
        return packed, Intended(lambda held: _is_rounded(held, form.to_matrix(weight.detach())))

    @classmethod
    def from_codes(
        cls, codes: GroupCodes, scheme: Scheme, form: MatrixForm, dtype: torch.dtype
    ) -> tuple[PackedMatrix, Intended]:
        """Pack codes that were chosen already.

        Args:
            codes: Of the whole matrix.
            scheme: Bits, group size, symmetry and scale dtype.
            form: How the weight is a matrix.
            dtype: dtype of the weight when dequantized.

        Returns:
            The packed matrix, and what it must hold.
        """
        packed = cls(form.rows, form.columns, scheme, dtype=dtype, device=codes.codes.device, form=form)
        intended = hashlib.sha256()
        for rows in row_chunks(form.rows, form.columns):
            part = GroupCodes(codes.codes[rows], codes.scale[rows], codes.zero_point[rows])
            packed.write_rows(rows, part)
            _hash_codes(intended, part)
        return packed, Intended.of_digest(intended.hexdigest())

    def codes_of(self, rows: slice) -> Codes:
        """A range of rows as kernels take them, to be read or written.

        Args:
            rows: Start must be even, so that the zero_points of the range start at a byte.
        """
        zero_point = self.zero_point
        if zero_point is not None and self.scheme.bits == 4:
            first, end = rows.start * self.groups // 2, packed_size(rows.stop * self.groups)
            zero_point = zero_point[first:end]
        elif zero_point is not None:
            zero_point = zero_point[rows]
        return Codes(self.qweight[rows], self.scale[rows], zero_point, self.columns, self.group_size)

    def write_rows(self, rows: slice, codes: GroupCodes) -> None:
        """Store codes and their parameters for a range of rows.

        Args:
            rows: Start must be even, so that the zero_points of the range start at a byte.
            codes: uint8 codes ``[rows, columns]`` with ``[rows, groups]`` parameters.
        """
        self.scale[rows] = codes.scale
        if self.scheme.bits == 8:
            self.qweight[rows] = _signed(codes.codes)
            if self.zero_point is not None:
                self.zero_point[rows] = _signed(codes.zero_point)
            return
        self.qweight[rows] = pack_nibbles(codes.codes)
        if self.zero_point is not None:
            first = rows.start * self.groups // 2
            nibbles = pack_nibbles(codes.zero_point.flatten())
            self.zero_point[first : first + len(nibbles)] = nibbles

    def read_rows(self, rows: slice | Tensor) -> GroupCodes:
        """Codes and parameters of some rows, as stored.

        Args:
            rows: Any range of rows, or their int64 indices.

        Returns:
            uint8 codes ``[rows, columns]``, scale and uint8 zero_point ``[rows, groups]``.
        """
        stored, scale = select_rows(self.qweight, rows), select_rows(self.scale, rows)
        codes = unpack_nibbles(stored, self.columns) if self.scheme.bits == 4 else stored
        zero_point = zero_points(self.codes, rows)
        if self.scheme.bits == 8:
            codes = _unsigned(codes)
            zero_point = _unsigned(zero_point) if isinstance(zero_point, Tensor) else self.scheme.middle_code
        if not isinstance(zero_point, Tensor):
            zero_point = torch.full_like(scale, zero_point, dtype=torch.uint8)
        return GroupCodes(codes, scale, zero_point)

    def holds_rounded(self, rows: slice, values: Tensor) -> bool:
        """Whether some rows are what rounding to nearest gives, bit by bit.

        Args:
            rows: Which.
            values: ``[n, columns]``, what was rounded.
        """
        expected, found = round_to_nearest(values, self.scheme), self.read_rows(rows)
        pairs = zip(attrs.astuple(expected, recurse=False), attrs.astuple(found, recurse=False), strict=True)
        return all(same_bits(one, other) for one, other in pairs)

    def digest(self) -> str:
        """SHA-256 over the unpacked codes and parameters, equal for equal meaning."""
        found = hashlib.sha256()
        for rows in row_chunks(self.rows, self.columns):
            _hash_codes(found, self.read_rows(rows))
        return found.hexdigest()

    def dequantized_rows(self, rows: slice | Tensor) -> Tensor:
        return dequantized(self.codes, rows).to(self.dtype)

    def layout_values(self) -> list[int]:
        scheme = self.scheme
        return [FORMAT_VERSION, scheme.bits, self.rows, self.columns, self.group_size, int(scheme.symmetric)]

    def buffer_dtypes(self) -> dict[str, torch.dtype]:
        return {"qweight": self._code_dtype, "scale": self.scale.dtype, "zero_point": self._code_dtype}

    @property
    def codes(self) -> Codes:
        """The buffers as kernels read them."""
        return Codes(self.qweight, self.scale, self.zero_point, self.columns, self.group_size)

    @property
    def kernel(self) -> ProductKernel:
        """What :meth:`multiplied` is computed by."""
        return self._kernel

    @property
    def derived_bytes(self) -> int:
        """Bytes that the kernel keeps beside the buffers; they are never saved."""
        return stored_bytes(self._derived)

    def use(self, offer: Offer) -> None:
        """Choose the kernel, now and whenever the matrix is moved or loaded.

        Args:
            offer: Kernels to choose from.
        """
        is_stale = self._derived and self._derived_from != _marks((self.qweight, self.scale, self.zero_point))
        if offer != self._offer or is_stale:
            self._offer = offer
            self._choose()

    def multiplied(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """``input @ weight.T + bias`` with the matrix.

        Args:
            input: ``[..., columns]`` in the matrix's dtype, or any under autocast.
            bias: ``[rows]``, or None.

        Returns:
            ``[..., rows]`` in the input's dtype; under autocast in its dtype, as of nn.Linear. Where buffers were
            written to since a kernel derived something from them, or stand in for others in this call, the portable
            kernel multiplies; ``choose_kernels`` derives anew.
        """
        if _wants_plain_operators(input):
            return functional.linear(input, self.dequantized_rows(slice(None)), bias)
        given, output_dtype, device = input, input.dtype, input.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            given, output_dtype = input.to(self.dtype), torch.get_autocast_dtype(device)
        if given.dtype != self.dtype or given.shape[-1:] != (self.columns,):
            raise InputError(
                f"input of shape {tuple(input.shape)} and dtype {input.dtype}: this layer takes {self.columns} input "
                f"features in {self.dtype}"
            )
        # What is exported may run on another machine, where nothing that was derived here means anything.
        exported = torch.compiler.is_exporting()
        buffers = self._buffers  # nn.Module's __getattr__ would take as long as a small kernel
        packed = (buffers["qweight"], buffers["scale"], buffers["zero_point"])
        stale = self._derived and not torch.compiler.is_compiling() and self._derived_from != _marks(packed)
        place, derived = (AT_PORTABLE, ()) if exported or stale else (self._place, self._derived)
        product = multiply(given, packed, bias, derived, self.columns, self.group_size, place)
        return product if product.dtype == output_dtype else product.to(output_dtype)

    def _choose(self) -> None:
        for name, buffer in self._buffers.items():
            if buffer is not None and not buffer.is_contiguous():  # as load_state_dict(assign=True) may leave them
                self._buffers[name] = buffer.contiguous()
        device = self.qweight.device
        if device.type == "meta":
            self._kernel, self._derived = PORTABLE, ()
        else:
            product = product_of(self.codes, self.scheme, self.dtype)
            self._kernel = self._offer.best(product)
            with torch.no_grad():
                self._derived = self._kernel.derive(self.codes, product)
        self._derived_from = _marks((self.qweight, self.scale, self.zero_point)) if self._derived else ()
        self._place = located(self._kernel)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedMatrix:
        super()._apply(fn, recurse)
        self._choose()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._choose()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles choose anew: what was derived may mean nothing where they are read.
        return {key: value for key, value in vars(self).items() if key not in _OF_THIS_MACHINE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._choose()

    def extra_repr(self) -> str:
        more = f", {self._kernel.name}" if self._kernel != PORTABLE else ""
        return f"{super().extra_repr()}{more}"

    @property
    def _code_dtype(self) -> torch.dtype:
        return torch.uint8 if self.scheme.bits == 4 else torch.int8


def _inputs_first(form: MatrixForm) -> bool | None:
    """Whether a weight's shape is that of its matrix (False), or of the transposed matrix (True); None for others."""
    if form == MatrixForm.rows_first((form.rows, form.columns)):
        return False
    return True if form == MatrixForm.along((form.columns, form.rows), 0) else None


def _wants_plain_operators(input: Tensor) -> bool:
    """Whether an operator of one's own would be in the way.

    Nested inputs, traces that run elsewhere, and function transforms and forward-mode derivatives, whose results would
    silently be zero.
    """
    if input.is_nested or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def _marks(buffers: tuple[Tensor | None, ...]) -> _Marks:
    """What tells whether buffers are those that they were, with the values that they had."""
    return tuple(None if one is None else _mark(one) for one in buffers)


def _mark(buffer: Tensor) -> tuple[int, int]:
    if type(buffer) is not Tensor:
        return id(buffer), 0  # stand-ins of tracers have no memory
    return buffer.data_ptr(), 0 if buffer.is_inference() else buffer._version


def _signed(codes: Tensor) -> Tensor:
    return (codes ^ _SIGN).view(torch.int8)


def _unsigned(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8) ^ _SIGN


def _is_rounded(packed: PackedWeight, matrix: Tensor) -> bool:
    """Whether a packed weight holds a matrix rounded to nearest."""
    return isinstance(packed, PackedMatrix) and all(
        packed.holds_rounded(rows, matrix[rows]) for rows in row_chunks(packed.rows, packed.columns)
    )


def _hash_codes(state: hashlib._Hash, codes: GroupCodes) -> None:
    hash_tensors(state, (codes.codes, codes.scale, codes.zero_point))
