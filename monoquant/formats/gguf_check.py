"""Read a GGUF file as its readers do, and compare it with the model that it was written from."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monoquant.errors import FileError
from monoquant.formats.gguf_blocks import read_blocks
from monoquant.formats.gguf_plan import GgufTensor
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import same_bits
from monoquant.numerics.grouping import row_chunks

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_file(library: Any, path: Path, tensors: Sequence[GgufTensor], entries: Mapping[str, Any]) -> None:
    """Refuse a file that readers would take for another model.

    Args:
        library: The gguf package.
        path: What was written.
        tensors: What it should hold.
        entries: Metadata that it should have.

    Raises:
        FileError: When it is not that.
    """
    reader = library.GGUFReader(path)
    found = {one.name: one for one in reader.tensors}
    wanted = {one.name for one in tensors}
    problems = [f"tensor {name} is missing" for name in sorted(wanted - found.keys())]
    problems += [f"tensor {name} is none of the model" for name in sorted(found.keys() - wanted)]
    problems += _of_entries(reader, entries)
    if not problems:
        problems += [text for one in tensors for text in _of_tensor(one, found[one.name])]
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise FileError(f"what was written is not what it should be, and is removed again; please report:\n{listed}")


def _of_entries(reader: Any, entries: Mapping[str, Any]) -> Iterator[str]:
    for key, value in entries.items():
        field = reader.get_field(key)
        found = None if field is None else field.contents()
        wanted = struct.unpack("f", struct.pack("f", value))[0] if isinstance(value, float) else value
        if found != wanted:
            yield f"{key} is {found!r:.80} instead of {wanted!r:.80}"


def _of_tensor(tensor: GgufTensor, found: Any) -> Iterator[str]:
    shape = tuple(reversed(found.shape.tolist()))
    if (found.tensor_type.name, shape) != (tensor.kind, tensor.shape):
        yield f"{tensor.name} is {found.tensor_type.name} {shape} instead of {tensor.kind} {tensor.shape}"
    elif not all(_holds(tensor, rows, _bytes_of(found.data[rows])) for rows in _chunks(tensor)):
        yield f"{tensor.name} holds other values than {tensor.source} of the model"


def _chunks(tensor: GgufTensor) -> Iterator[slice]:
    yield from row_chunks(tensor.shape[0], tensor.shape[1] if len(tensor.shape) > 1 else 1)


def _bytes_of(data: Any) -> Tensor:
    return torch.frombuffer(bytearray(data.tobytes()), dtype=torch.uint8).view(len(data), -1)


def _holds(tensor: GgufTensor, rows: slice, content: Tensor) -> bool:
    """Whether rows of the file are those of the model, wherever it has them."""
    places = _places(torch.arange(rows.start, rows.stop), tensor.shape[0], tensor.heads)
    weight = tensor.weight
    if isinstance(weight, PackedMatrix):
        values = read_blocks(content, weight.scheme.bits).to(weight.dtype)
        return torch.equal(values, weight.dequantized_rows(places.to(weight.scale.device)).cpu())
    read = content.view(_DTYPES[tensor.kind])
    own = weight.detach()[places.to(weight.device)].cpu().to(read.dtype).contiguous()
    return same_bits(read, own.view(read.shape))


def _places(rows: Tensor, count: int, heads: int) -> Tensor:
    """The model's row that each row of the file is: even ones lie in the first half of a head."""
    if not heads:
        return rows
    width = count // heads
    head, place = rows // width, rows % width
    return head * width + place % 2 * (width // 2) + place // 2
