"""Read a compressed-tensors folder as its readers do, and compare it with the model that it was written from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from monoquant.errors import FileError
from monoquant.formats.compressed_tensors_limits import group_size_of
from monoquant.formats.folder import CONFIG
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import same_bits
from monoquant.numerics.grouping import row_chunks

_PARTS = ("weight_packed", "weight_scale", "weight_shape")


def check_folder(
    folder: Path, model: nn.Module, packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
) -> None:
    """Refuse a folder that readers would take for another model.

    Args:
        folder: What was written.
        model: The quantized model.
        packed: Its packed Linear layers by name.
        floats: All its other tensors by name.

    Raises:
        FileError: When codes, scales, shapes, float tensors or config.json are not those of the model.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("quantization_config", {})
    problems = [*_of_config(config), *_of_layers(config, model, packed)]
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - a safe_open is no mapping
        expected = {*floats, *(f"{name}.{part}" for name in packed for part in _PARTS)}
        problems += [f"tensor {name} is missing" for name in sorted(expected - places.keys())]
        problems += [f"tensor {name} is none of the model" for name in sorted(places.keys() - expected)]
        if not problems:
            problems += _of_tensors(places, packed, floats)
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise FileError(f"what was written is not what it should be, and is removed again; please report:\n{listed}")


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


def _of_tensors(
    places: Mapping[str, Any], packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
) -> Iterator[str]:
    for name, tensor in floats.items():
        found, own = places[name].get_tensor(name), tensor.detach().cpu()
        if found.dtype != own.dtype or found.shape != own.shape or not same_bits(found, own):
            yield f"tensor {name} has other values than the model's"
    for name, matrix in packed.items():
        words, scale, shape = (places[f"{name}.{part}"].get_tensor(f"{name}.{part}") for part in _PARTS)
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
        torch.equal(_unpacked(words[rows], bits)[:, :columns], matrix.read_rows(rows).codes.cpu().int())
        for rows in row_chunks(matrix.rows, columns)
    )


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Codes in words, read one shift at a time: another way than they were packed."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return words.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and((1 << bits) - 1).flatten(1)
