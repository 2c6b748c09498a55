"""Bytes of tensors: how many they hold, and a view of them for hashing and writing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from torch import Tensor


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors really hold, shared memory counted once.

    Args:
        tensors: Any tensors, on any device, meta included.

    Returns:
        Bytes. Equal views of one storage count once, different views add up to at most their storage.
    """
    # All kept alive, or the address of a freed storage would be met again.
    held_alive = [part for tensor in tensors for part in _dense_parts(tensor)]
    views: dict[int, set[tuple[int, int]]] = {}
    capacity: dict[int, int] = {}
    for tensor in held_alive:
        storage = tensor.untyped_storage()
        capacity[storage._cdata] = storage.nbytes()
        view = (int(tensor.storage_offset()), tensor.numel() * tensor.element_size())
        views.setdefault(storage._cdata, set()).add(view)
    return sum(min(capacity[key], sum(size for _, size in held)) for key, held in views.items())


def format_bytes(count: float) -> str:
    """Bytes with a binary unit, for people.

    Args:
        count: Bytes, >= 0.

    Returns:
        For example ``"512 B"``, ``"2.0 KiB"``, ``"1.3 MiB"``.
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.strided:
        return [tensor]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    by_rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    outer, inner = (
        (tensor.crow_indices(), tensor.col_indices()) if by_rows else (tensor.ccol_indices(), tensor.row_indices())
    )
    return [outer, inner, tensor.values()]


def byte_view(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy.

    Args:
        tensor: Contiguous CPU tensor; it must outlive the view.

    Returns:
        A view of ``numel * element_size`` bytes in the machine's byte order.
    """
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return memoryview(b"")
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
