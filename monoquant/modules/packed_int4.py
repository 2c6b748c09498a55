"""A weight matrix in canonical INT4 storage, the part that all packed layers share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.errors import ConfigError
from monoquant.numerics.affine import GroupCodes, dequantize, round_to_nearest
from monoquant.numerics.grouping import group_count, row_chunks
from monoquant.numerics.memory import byte_view, stored_bytes
from monoquant.numerics.packing import pack_nibbles, packed_size, unpack_nibbles
from monoquant.values import Scheme

FORMAT_VERSION = 1
_SAME_WIDTH_INTEGER = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def storage_bytes(rows: int, columns: int, scheme: Scheme) -> int:
    """Bytes of the buffers of a packed matrix.

    Args:
        rows: Output features, >= 1.
        columns: Input features, >= 1.
        scheme: Group size, symmetry and scale dtype.
    """
    packed = PackedInt4(rows, columns, scheme, device="meta")
    return stored_bytes(packed.buffers())


class PackedInt4(nn.Module):
    """A ``[rows, columns]`` matrix of 4-bit codes with a scale and zero_point per group of columns.

    The buffers are the same bytes on every machine; nothing that depends on a device or an instruction set is kept.

    Args:
        rows: Output features, >= 1.
        columns: Input features, >= 1.
        scheme: Group size, symmetry and scale dtype.
        dtype: dtype of the matrix when dequantized; default torch.float32. Follows ``.to(dtype)``.
        device: Where the buffers live; default: torch's default device.

    Attributes:
        qweight: uint8 ``[rows, ceil(columns / 2)]``; the low nibble is the even column.
        scale: ``[rows, groups]`` in the scheme's scale dtype; ``.to(dtype)`` never changes it.
        zero_point: uint8 ``[ceil(rows * groups / 2)]``, nibbles in row-major order; None when symmetric.
        layout: int32 ``[6]``: format version, bits, rows, columns, group size, symmetric. Makes a state dict
            say what its bytes mean.
    """

    qweight: Tensor
    scale: Tensor
    zero_point: Tensor | None
    layout: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        scheme: Scheme,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for what, size in (("output", rows), ("input", columns)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(f"{size!r} {what} features: give a whole number >= 1")
        if not isinstance(scheme, Scheme):
            raise ConfigError(f"scheme={scheme!r}: give a Scheme")
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype={dtype}: give a floating-point dtype")
        self.rows, self.columns, self.scheme, self.dtype = rows, columns, scheme, dtype
        self.group_size = min(scheme.group_size, columns)
        self.groups = group_count(columns, self.group_size)
        self.register_buffer("qweight", torch.zeros(rows, packed_size(columns), dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.ones(rows, self.groups, dtype=scheme.scale_dtype, device=device))
        zero_point = None
        if not scheme.symmetric:
            zero_point = torch.zeros(packed_size(rows * self.groups), dtype=torch.uint8, device=device)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("layout", torch.tensor(self._layout_values(), dtype=torch.int32, device=device))

    @classmethod
    def pack(cls, weight: Tensor, scheme: Scheme) -> tuple[PackedInt4, str]:
        """Quantize a matrix to the nearest codes and pack it, a few rows at a time.

        Args:
            weight: ``[rows, columns]``, any real float dtype, finite.
            scheme: Group size, symmetry and scale dtype.

        Returns:
            The packed matrix, and the digest of what it must unpack to (compare with :meth:`digest`).
        """
        rows_total, columns = weight.shape
        packed = cls(rows_total, columns, scheme, dtype=weight.dtype, device=weight.device)
        intended = hashlib.sha256()
        for rows in row_chunks(rows_total, columns):
            codes = round_to_nearest(weight[rows].detach(), scheme)
            packed.write_rows(rows, codes)
            _hash_codes(intended, codes)
        return packed, intended.hexdigest()

    def write_rows(self, rows: slice, codes: GroupCodes) -> None:
        """Store codes and their parameters for a range of rows.

        Args:
            rows: Start must be even, so that the zero_points of the range start at a byte.
            codes: uint8 codes ``[rows, columns]`` with ``[rows, groups]`` parameters.
        """
        self.qweight[rows] = pack_nibbles(codes.codes)
        self.scale[rows] = codes.scale
        if self.zero_point is not None:
            first = rows.start * self.groups // 2
            nibbles = pack_nibbles(codes.zero_point.flatten())
            self.zero_point[first : first + len(nibbles)] = nibbles

    def read_rows(self, rows: slice) -> GroupCodes:
        """Codes and parameters of a range of rows, as stored.

        Args:
            rows: Any range of rows.

        Returns:
            uint8 codes ``[rows, columns]``, scale and uint8 zero_point ``[rows, groups]``.
        """
        zero_point = self._zero_points()
        if zero_point is None:
            zero_point = torch.full_like(self.scale, 8, dtype=torch.uint8)
        return GroupCodes(unpack_nibbles(self.qweight[rows], self.columns), self.scale[rows], zero_point[rows])

    def digest(self) -> str:
        """SHA-256 over the unpacked codes and parameters, equal for equal meaning."""
        found = hashlib.sha256()
        for rows in row_chunks(self.rows, self.columns):
            _hash_codes(found, self.read_rows(rows))
        return found.hexdigest()

    def dequantize(self) -> Tensor:
        """The matrix in floating point.

        Returns:
            ``[rows, columns]`` in ``self.dtype``: ``(q - zero_point) * scale`` in float32, then cast.
        """
        codes = unpack_nibbles(self.qweight, self.columns)
        return dequantize(codes, self.scale, self._zero_points(), self.group_size).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.rows}x{self.columns}, {self.scheme}"

    def _zero_points(self) -> Tensor | None:
        if self.zero_point is None:
            return None
        return unpack_nibbles(self.zero_point, self.rows * self.groups).view(self.rows, self.groups)

    def _layout_values(self) -> list[int]:
        scheme = self.scheme
        return [FORMAT_VERSION, scheme.bits, self.rows, self.columns, self.group_size, int(scheme.symmetric)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedInt4:
        scale_dtype = self.scale.dtype
        probe = torch.empty(0, dtype=self.dtype, device=self.scale.device)
        # A cast of the scale would change the weights, so it travels as integers: moved, never converted.
        self._buffers["scale"] = self.scale.view(_SAME_WIDTH_INTEGER[scale_dtype])
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._buffers["scale"] = self.scale.view(scale_dtype)
        self.dtype = fn(probe).dtype
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        error_messages: list[str] = args[-1] if args else kwargs["error_msgs"]
        problems = self._state_problems(state_dict, prefix)
        if problems:
            error_messages.extend(problems)
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _state_problems(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        problems = []
        layout = state_dict.get(f"{prefix}layout")
        if layout is not None and layout.tolist() != self._layout_values():
            names = "format version, bits, rows, columns, group size, symmetric"
            problems.append(f"{prefix}layout ({names}) is {layout.tolist()}, this layer has {self._layout_values()}")
        for name, dtype in (("qweight", torch.uint8), ("scale", self.scale.dtype), ("zero_point", torch.uint8)):
            found = state_dict.get(prefix + name)
            if found is not None and found.dtype != dtype:
                problems.append(f"{prefix}{name} has dtype {found.dtype}, this layer has {dtype}")
        return problems


def _hash_codes(state: hashlib._Hash, codes: GroupCodes) -> None:
    for part in (codes.codes, codes.scale, codes.zero_point):
        contiguous = part.detach().cpu().contiguous()
        state.update(byte_view(contiguous))
