"""compressed-tensors ``pack-quantized``: a HuggingFace folder that transformers and vLLM read without monoquant.

The layout is that of ``compressed_tensors.compressors.pack_quantized`` 0.20. Per Linear, ``weight_packed`` holds
unsigned codes in int32 words along the input features, the first one in the lowest bits; ``weight_scale`` is
``[out, groups]``; ``weight_shape`` is ``[out, in]``. Readers trust config.json: which Linear is packed how, and which
is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monoquant.formats.base import Exporter
from monoquant.formats.compressed_tensors_check import check_folder
from monoquant.formats.folder import (
    dtype_of,
    folder_obstacle,
    refuse_meta,
    require_pretrained,
    side_files,
    write_folder,
)
from monoquant.formats.folder_floats import float_linears, held_floats
from monoquant.formats.packed_linears import group_size_of, inexact, packed_linears
from monoquant.formats.words import packed_words
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.quantizer import QuantResult

METHOD = "compressed-tensors"


class CompressedTensorsExporter(Exporter):
    """Writes a folder that ``AutoModel.from_pretrained`` reads where compressed-tensors is installed."""

    name: ClassVar[str] = METHOD

    def obstacle_at(self, path: Path) -> str:
        return folder_obstacle(path, self.name, METHOD)

    def require_held(self, model: nn.Module) -> None:
        require_pretrained(model)
        _held(model)

    def write(self, result: QuantResult, path: Path) -> None:
        model = result.model
        require_pretrained(model)
        refuse_meta(model)
        packed, floats = _held(model)
        tensors = {**floats, **_packed_tensors(packed, dtype_of(model))}
        write_folder(path, model, quantization_config(model, packed), tensors)
        check_folder(path, model, packed, floats)


def _held(model: nn.Module) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
    """What the format holds in codes, and in float; refused before anything is written."""
    packed = packed_linears(model, METHOD, partial(_obstacles, dtype=dtype_of(model)))
    floats = held_floats(model, packed)
    side_files(model)
    return packed, floats


def _obstacles(matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
    if not matrix.scheme.symmetric:
        yield "its codes are asymmetric, which transformers fails to load; quantize with symmetric=True"
    yield from inexact(matrix, dtype)


def quantization_config(model: nn.Module, packed: Mapping[str, PackedMatrix]) -> dict[str, Any]:
    """What config.json says of the weights.

    Args:
        model: The quantized model.
        packed: Its packed Linear layers by name.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for name, matrix in packed.items():
        groups.setdefault((-matrix.scheme.bits, group_size_of(matrix) or 0), []).append(name)
    # transformers' dequantize=True takes the first group for all layers: in this order, that fails instead of giving
    # other weights.
    schemes = {
        f"group_{number}": _scheme(-bits, size, ["Linear"] if len(groups) == 1 else names)
        for number, ((bits, size), names) in enumerate(sorted(groups.items()))
    }
    return {
        "quant_method": METHOD,
        "format": "pack-quantized",
        "quantization_status": "compressed",  # without it, readers take what they find for floats
        "config_groups": schemes,
        "ignore": float_linears(model),
    }


def _scheme(bits: int, group_size: int, targets: list[str]) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def _packed_tensors(packed: Mapping[str, PackedMatrix], dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, matrix in packed.items():
        tensors[f"{name}.weight_packed"] = packed_words(matrix)
        # In the model's dtype, in which readers multiply: some cast scales to it, others the product.
        tensors[f"{name}.weight_scale"] = matrix.scale.to(dtype)
        tensors[f"{name}.weight_shape"] = torch.tensor([matrix.rows, matrix.columns])
    return tensors
