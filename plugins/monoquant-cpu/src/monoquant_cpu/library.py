"""The native library: loaded once, and called with tensors that were checked before, without the GIL."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from monoquant.errors import ConfigError, InputError, PluginError
from torch import Tensor

from monoquant_cpu.interface import DTYPES, ISAS, MATRIX, OUT_OF_MEMORY, VERSION, QuantizeTask

MOST_THREADS = 1024
"""More are a mistake, and int32 ends somewhere."""
REINSTALL = "reinstall monoquant-cpu where a C++17 compiler is"


@attrs.frozen
class Unavailable:
    """Why nothing native can be called.

    Args:
        reason: A clause: what is wrong, and what to do.
    """

    reason: str


class Library:
    """The functions of a loaded native library.

    Args:
        native: The library, its version the one that this package was written for.

    Attributes:
        isas: Names of the instruction sets that the library and this CPU have, the fastest first.
    """

    def __init__(self, native: ctypes.CDLL) -> None:
        products = {"int8": native.mq_product_int8, "float": native.mq_product_float}
        for function in products.values():
            function.argtypes = (c_int32, c_char_p, c_void_p, c_int64, c_void_p, c_void_p, c_int32)
        native.mq_quantize.argtypes = (c_int32, POINTER(QuantizeTask), c_int32)
        self._products: dict[str, Any] = products
        self._quantize: Any = native.mq_quantize
        self._isa_codes: dict[str | None, int] = {
            isa: code for code, isa in enumerate(ISAS) if native.mq_supports(code)
        }
        self.isas = tuple(isa for isa in reversed(ISAS) if isa in self._isa_codes)
        if self.isas:
            self._isa_codes[None] = self._isa_codes[self.isas[0]]

    def product(
        self,
        kind: Literal["int8", "float"],
        x: Tensor,
        qweight: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        columns: int,
        group_size: int,
        bias: Tensor | None = None,
        *,
        threads: int = 1,
        isa: str | None = None,
    ) -> Tensor:
        """Multiply rows with a packed matrix: ``x @ dequantized.T + bias``.

        Args:
            kind: ``"int8"``: each group of each row of x is rounded to 8 bits. ``"float"``: as exact as a float32
                product.
            x: float32 ``[count, columns]``, contiguous.
            qweight: uint8 ``[rows, ceil(columns / 2)]``, as in monoquant's PackedMatrix; so are the next two.
            scale: float32, float16 or bfloat16 ``[rows, groups]``.
            zero_point: uint8 ``[ceil(rows * groups / 2)]``; None: symmetric.
            columns: Columns of the matrix, >= 1.
            group_size: Columns per group, 1..columns; the last group may be shorter.
            bias: float32 ``[rows]``; default: none.
            threads: How many threads work, this one among them, >= 1; default 1.
            isa: One of ``isas``; default: the fastest.

        Returns:
            float32 ``[count, rows]``.

        Raises:
            InputError: A tensor is not of that dtype and shape, or not contiguous, or not on the CPU.
            ConfigError: Another argument is wrong.
        """
        code, function = self._isa_code(isa), self._products.get(kind)
        if function is None:
            raise ConfigError(f"kind={kind!r}: give 'int8' or 'float'")
        _check_numbers(columns, group_size, threads)
        # A tensor without dimensions has the wrong shape, whatever its length is taken for.
        rows = qweight.shape[0] if qweight.dim() else 1
        count = x.shape[0] if x.dim() else 1
        _check_matrix(qweight, scale, zero_point, rows, columns, group_size)
        _check("x", x, torch.float32, (count, columns))
        if bias is not None:
            _check("bias", bias, torch.float32, (rows,))
        out = x.new_empty(count, rows)
        if count == 0:
            return out
        matrix = MATRIX.pack(
            qweight.data_ptr(),
            scale.data_ptr(),
            0 if zero_point is None else zero_point.data_ptr(),
            rows,
            columns,
            group_size,
            DTYPES[scale.dtype],
        )
        status = function(
            code,
            matrix,
            x.data_ptr(),
            count,
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            threads,
        )
        if status:
            raise _failure(status)
        return out

    def quantize_rows(
        self,
        values: Tensor,
        group_size: int,
        qweight: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        *,
        threads: int = 1,
        energies: Tensor | None = None,
        isa: str | None = None,
    ) -> None:
        """Round rows to the nearest 4-bit codes and pack them, bit for bit as monoquant's PackedMatrix.pack does.

        Args:
            values: float32, float16 or bfloat16 ``[rows, columns]``, finite; rows may be any distance apart.
            group_size: Columns per group, 1..columns; the last group may be shorter.
            qweight: Out: uint8 ``[rows, ceil(columns / 2)]``.
            scale: Out: ``[rows, groups]`` in the scheme's scale dtype.
            zero_point: Out: uint8 ``[ceil(rows * groups / 2)]``; None: the scheme is symmetric.
            threads: How many threads work, this one among them, >= 1; default 1.
            energies: float64 ``[2]``; sums of squares of the values, and of the values less the dequantized ones in
                float32, are added to it. The same for any number of threads. Default: not computed.
            isa: One of ``isas``; default: the fastest.

        Raises:
            InputError: A tensor is not of that dtype and shape, or (values aside) not contiguous, or not on the CPU.
            ConfigError: Another argument is wrong.
        """
        code = self._isa_code(isa)
        _check_values(values)
        rows, columns = values.shape
        _check_numbers(columns, group_size, threads)
        _check_matrix(qweight, scale, zero_point, rows, columns, group_size)
        if energies is not None:
            _check("energies", energies, torch.float64, (2,))
        task = QuantizeTask(
            values.data_ptr(),
            rows,
            columns,
            values.stride(0),
            group_size,
            DTYPES[values.dtype],
            DTYPES[scale.dtype],
            zero_point is None,
            qweight.data_ptr(),
            scale.data_ptr(),
            None if zero_point is None else zero_point.data_ptr(),
            None if energies is None else energies.data_ptr(),
        )
        status = self._quantize(code, byref(task), threads)
        if status:
            raise _failure(status)

    def _isa_code(self, isa: str | None) -> int:
        code = self._isa_codes.get(isa)
        if code is None:
            raise ConfigError(
                f"isa={isa!r}: this CPU and library have {', '.join(self.isas)}; give one of them, or None"
            )
        return code


@functools.cache
def load() -> Library | Unavailable:
    """The native library, or why there is none; the same object each time."""
    return open_library(Path(__file__).parent)


def open_library(folder: Path) -> Library | Unavailable:
    """Load the library in a folder.

    Args:
        folder: Holds ``_native.so``, or ``_native.missing`` that says why it was not built.
    """
    path, missing = folder / "_native.so", folder / "_native.missing"
    if not path.exists():
        why = missing.read_text(encoding="utf-8") if missing.exists() else f"there is no {path}"
        return Unavailable(f"the native library was not built: {why}; {REINSTALL}")
    try:
        native = ctypes.CDLL(str(path))
        if native.mq_version() != VERSION:
            return Unavailable(
                f"the native library has version {native.mq_version()}, this package needs {VERSION}; {REINSTALL}"
            )
        library = Library(native)
    except (OSError, AttributeError) as error:
        return Unavailable(f"the native library cannot be loaded: {error}; {REINSTALL}")
    if not library.isas:
        return Unavailable("this CPU has none of the instruction sets that the native library was compiled for")
    return library


def _check_numbers(columns: int, group_size: int, threads: int) -> None:
    if columns < 1:
        raise ConfigError(f"columns={columns}: give a whole number >= 1")
    if not 1 <= group_size <= columns:
        raise ConfigError(f"group_size={group_size} for {columns} columns: give a whole number from 1 to {columns}")
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads={threads}: give a whole number from 1 to {MOST_THREADS}")


def _check_matrix(
    qweight: Tensor, scale: Tensor, zero_point: Tensor | None, rows: int, columns: int, group_size: int
) -> None:
    if rows < 1:
        raise InputError("the matrix has 0 rows: give at least 1")
    groups = -(-columns // group_size)
    _check("qweight", qweight, torch.uint8, (rows, (columns + 1) // 2))
    if scale.dtype not in DTYPES:
        raise InputError(f"scale is {scale.dtype}: give one of {', '.join(map(str, DTYPES))}")
    _check("scale", scale, scale.dtype, (rows, groups))
    if zero_point is not None:
        _check("zero_point", zero_point, torch.uint8, ((rows * groups + 1) // 2,))


def _check_values(values: Tensor) -> None:
    if values.dim() != 2 or values.dtype not in DTYPES or not values.is_cpu:
        raise InputError(
            f"values are {_described(values)}: give [rows, columns] of {', '.join(map(str, DTYPES))} on the CPU"
        )
    if values.shape[1] > 1 and values.stride(1) != 1:
        raise InputError(
            f"the columns of values are {values.stride(1)} elements apart: give values whose rows are dense"
        )


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what C would read or write out of bounds."""
    if tensor.dtype is dtype and tensor.shape == shape and tensor.is_cpu and tensor.is_contiguous():
        return
    raise InputError(f"{name} is {_described(tensor)}: give {dtype} {list(shape)} on the CPU, contiguous")


def _described(tensor: Tensor) -> str:
    dense = "" if tensor.is_contiguous() else ", not contiguous"
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}{dense}"


def _failure(status: int) -> Exception:
    if status == OUT_OF_MEMORY:
        return MemoryError("the native kernels got no memory for their temporaries")
    return PluginError(f"the native library refused a call (status {status}); this is a bug in monoquant-cpu")
