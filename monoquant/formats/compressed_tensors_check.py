"""Read a compressed-tensors folder as its readers do, and compare it with the model that it was written from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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

_PARTS = ("weight_packed", "weight_scale", "weight_shape")


def check_folder(
    folder: Path, model: nn.Module, packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
) -> None:
    """What :meth:`LinearsExporter.check` is for this format; arguments are as there.

    Raises:
        FileError: When codes, scales, shapes, float tensors or config.json are not those of the model.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("quantization_config", {})
    tensors = check_tensors(folder, floats, packed, _PARTS, _of_layer)
    refuse([*_of_config(config), *_of_layers(config, model, packed), *tensors])


def _of_config(config: Mapping[str, Any]) -> Iterator[str]:
    wanted = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    for key, value in wanted.items():
        if config.get(key) != value:
            yield f"quantization_config.{key} is {config.get(key)!r} instead of {value!r}"


def _of_layers(config: Mapping[str, Any], model: nn.Module, packed: Mapping[str, PackedMatrix]) -> Iterator[str]:
    """How readers would take each Linear, and how they should."""
    groups, ignored = config.get("config_groups", {}), set(config.get("ignore", []))
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear):
            continue
        fitting = (group for group in groups.values() if {name, "Linear"} & set(group.get("targets", [])))
        group = None if name in ignored else next(fitting, None)
        found = None if group is None else _facts(group)
        wanted = _facts_of(packed[name]) if name in packed else None
        if found != wanted:
            yield f"readers would take {name} for {found or 'a float layer'}; it is {wanted or 'a float layer'}"


def _facts(group: Mapping[str, Any]) -> tuple[Any, ...]:
    weights = group.get("weights") or {}
    inputs, outputs = group.get("input_activations"), group.get("output_activations")
    keys = ("num_bits", "type", "symmetric", "strategy", "group_size")
    return (*(weights.get(key) for key in keys), inputs, outputs)


def _facts_of(matrix: PackedMatrix) -> tuple[Any, ...]:
    size = group_size_of(matrix)
    return (matrix.scheme.bits, "int", True, "channel" if size is None else "group", size, None, None)


def _of_layer(name: str, found: list[Tensor], matrix: PackedMatrix) -> Iterator[str]:
    words, scale, shape = found
    if shape.tolist() != [matrix.rows, matrix.columns]:
        yield f"{name}.weight_shape is {shape.tolist()} instead of {[matrix.rows, matrix.columns]}"
    elif not _holds_codes(words, matrix):
        yield f"{name}.weight_packed holds other codes than the model"
    if scale.dtype != matrix.dtype or not torch.equal(scale.double(), matrix.scale.cpu().double()):
        yield f"{name}.weight_scale has other values than the model's"


def _holds_codes(words: Tensor, matrix: PackedMatrix) -> bool:
    bits, columns = matrix.scheme.bits, matrix.columns
    if words.dtype != torch.int32 or words.shape != (matrix.rows, -(-columns * bits // 32)):
        return False
    return all(
        torch.equal(unpacked(words[rows], bits)[:, :columns], matrix.read_rows(rows).codes.cpu().int())
        for rows in row_chunks(matrix.rows, columns)
    )
