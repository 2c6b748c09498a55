"""The C interface of the native library, as ctypes sees it; native/api.h is the original."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from struct import Struct
from typing import ClassVar

import torch

VERSION = 1
OUT_OF_MEMORY = 2

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ISAS = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "neon")
"""By their number in C; of those of one machine, the fastest last."""


MATRIX = Struct("@PPPqqqi0q")
"""``mq_matrix``, made in less time than a ctypes.Structure: qweight, scale, zero_point (0: none), rows, columns,
group_size, scale_dtype."""


class QuantizeTask(ctypes.Structure):
    """``mq_quantize_task``."""

    _fields_: ClassVar = [
        ("values", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_stride", c_int64),
        ("group_size", c_int64),
        ("dtype", c_int32),
        ("scale_dtype", c_int32),
        ("symmetric", c_int32),
        ("qweight", c_void_p),
        ("scale", c_void_p),
        ("zero_point", c_void_p),
        ("energies", c_void_p),
    ]
