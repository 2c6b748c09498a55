"""Read a GPTQ folder as its readers do, and compare it with the model that it was written from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.formats.folder import CONFIG
from monoquant.formats.folder_check import check_tensors, refuse
from monoquant.formats.packed_linears import group_size_of
from monoquant.formats.words import unpacked
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.numerics.grouping import row_chunks

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ADDED = {"gptq": 1, "gptq_v2": 0}
"""What readers add to stored zero points."""
_NO_SCHEME = "a float layer"


def check_folder(
    folder: Path, model: nn.Module, packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
) -> None:
    """What :meth:`LinearsExporter.check` is for this format; arguments are as there.

    Raises:
        FileError: When codes, zero points, scales, groups, float tensors or config.json are not those of the model.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("quantization_config", {})
    compare = partial(_of_layer, added=_ADDED.get(config.get("checkpoint_format"), 0))
    tensors = check_tensors(folder, floats, packed, _PARTS, compare)
    refuse([*_of_config(config, packed), *_of_layers(config, model, packed), *tensors])


def _of_config(config: Mapping[str, Any], packed: Mapping[str, PackedMatrix]) -> Iterator[str]:
    symmetric = all(matrix.scheme.symmetric for matrix in packed.values())
    wanted = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if symmetric else "gptq_v2",
        "sym": symmetric,
        "desc_act": False,
        "lm_head": "lm_head" in packed,
        "block_name_to_quantize": "",
    }
    for key, value in wanted.items():
        if config.get(key) != value:
            yield f"quantization_config.{key} is {config.get(key)!r} instead of {value!r}"


def _of_layers(config: Mapping[str, Any], model: nn.Module, packed: Mapping[str, PackedMatrix]) -> Iterator[str]:
    """How each reader would take each Linear, and how they should."""
    listed = [name for names in config.get("modules_in_block_to_quantize", []) for name in names]
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear):
            continue
        wanted = _facts_of(packed[name]) if name in packed else _NO_SCHEME
        found = _facts(config, name)
        if found != wanted:
            yield f"gptqmodel would take {name} for {found}; it is {wanted}"
        if any(name.endswith(one) for one in listed) != (name in packed):
            yield f"modules_in_block_to_quantize, which optimum reads, is wrong about {name}; it is {wanted}"


def _facts(config: Mapping[str, Any], name: str) -> object:
    for pattern, own in config.get("dynamic", {}).items():
        if re.match(pattern[2:], name):
            return _NO_SCHEME if pattern.startswith("-:") else _described({**config, **own})
    return _described(config)


def _facts_of(matrix: PackedMatrix) -> object:
    return _described({"bits": matrix.scheme.bits, "group_size": group_size_of(matrix) or -1})


def _described(entries: Mapping[str, Any]) -> str:
    return f"one of {entries.get('bits')} bits with group_size={entries.get('group_size')}"


def _of_layer(name: str, found: list[Tensor], matrix: PackedMatrix, added: int) -> Iterator[str]:
    codes, zeros, scales, groups = found
    bits = matrix.scheme.bits
    if not _are_words(codes, matrix.columns * bits, matrix.rows) or not _holds_codes(codes, matrix):
        yield f"{name}.qweight holds other codes than the model"
    if not _are_words(zeros.t(), matrix.rows * bits, matrix.groups) or not _holds_zeros(zeros, added, matrix):
        yield f"{name}.qzeros holds other zero points than the model"
    if scales.dtype != torch.float16 or not torch.equal(scales.t().double(), matrix.scale.cpu().double()):
        yield f"{name}.scales has other values than the model's"
    if groups.dtype != torch.int32 or groups.tolist() != [one // matrix.group_size for one in range(matrix.columns)]:
        yield f"{name}.g_idx puts features into other groups than the model"


def _are_words(tensor: Tensor, bits: int, columns: int) -> bool:
    return tensor.dtype == torch.int32 and tensor.shape == (bits // 32, columns)


def _holds_codes(words: Tensor, matrix: PackedMatrix) -> bool:
    return all(
        torch.equal(unpacked(words[:, rows].t(), matrix.scheme.bits), matrix.read_rows(rows).codes.cpu().int())
        for rows in row_chunks(matrix.rows, matrix.columns)
    )


def _holds_zeros(words: Tensor, added: int, matrix: PackedMatrix) -> bool:
    stored = unpacked(words, matrix.scheme.bits).t() + added
    return all(
        torch.equal(stored[rows], matrix.read_rows(rows).zero_point.cpu().int())
        for rows in row_chunks(matrix.rows, matrix.columns)
    )
