"""compressed-tensors ``pack-quantized``: a HuggingFace folder that transformers and vLLM read without monoquant.

The layout is that of ``compressed_tensors.compressors.pack_quantized`` 0.20. Per Linear, ``weight_packed`` holds
unsigned codes in int32 words along the input features, the first one in the lowest bits; ``weight_scale`` is
``[out, groups]``; ``weight_shape`` is ``[out, in]``. Readers trust config.json: which Linear is packed how, and which
is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from monoquant.formats.compressed_tensors_check import check_folder
from monoquant.formats.folder_floats import float_linears
from monoquant.formats.linears_exporter import LinearsExporter
from monoquant.formats.packed_linears import group_size_of, inexact
from monoquant.formats.words import packed_words
from monoquant.modules.packed_matrix import PackedMatrix

METHOD = "compressed-tensors"


class CompressedTensorsExporter(LinearsExporter):
    """Writes a folder that ``AutoModel.from_pretrained`` reads where compressed-tensors is installed."""

    name: ClassVar[str] = METHOD

    def obstacles_of(self, matrix: PackedMatrix, dtype: torch.dtype) -> Iterator[str]:
        if not matrix.scheme.symmetric:
            yield "its codes are asymmetric, which transformers fails to load; quantize with symmetric=True"
        yield from inexact(matrix, dtype)

    def config_of(self, model: nn.Module, packed: Mapping[str, PackedMatrix]) -> dict[str, Any]:
        groups: dict[tuple[int, int], list[str]] = {}
        for name, matrix in packed.items():
            groups.setdefault((-matrix.scheme.bits, group_size_of(matrix) or 0), []).append(name)
        # transformers' dequantize=True takes the first group for all layers: in this order, that fails instead of
        # giving other weights.
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

    def tensors_of(self, packed: Mapping[str, PackedMatrix], dtype: torch.dtype) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, matrix in packed.items():
            tensors[f"{name}.weight_packed"] = packed_words(matrix)
            # In the model's dtype, in which readers multiply: some cast scales to it, others the product.
            tensors[f"{name}.weight_scale"] = matrix.scale.to(dtype)
            tensors[f"{name}.weight_shape"] = torch.tensor([matrix.rows, matrix.columns])
        return tensors

    def check(
        self, folder: Path, model: nn.Module, packed: Mapping[str, PackedMatrix], floats: Mapping[str, Tensor]
    ) -> None:
        check_folder(folder, model, packed, floats)


def _scheme(bits: int, group_size: int, targets: list[str]) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy}
    return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}
