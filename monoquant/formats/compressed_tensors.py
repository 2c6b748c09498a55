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

from monoquant.errors import FileError, quoted
from monoquant.formats.base import Exporter
from monoquant.formats.compressed_tensors_check import check_folder
from monoquant.formats.compressed_tensors_limits import group_size_of, packed_linears
from monoquant.formats.folder import (
    copy_side_files,
    dtype_of,
    folder_obstacle,
    kept_in_float32,
    lossy_casts,
    refuse_meta,
    renamed_names,
    require_pretrained,
    side_files,
    tied_names,
    unsaved_names,
    write_configuration,
    write_weights,
)
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.quantizer import QuantResult
from monoquant.source import joined, names_of_modules, persistent_tensors, tensor_identity

METHOD = "compressed-tensors"
_WORD = 4
"""Bytes of the integers that codes are packed into."""


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
        path.mkdir()
        tensors = {**floats, **_packed_tensors(packed, dtype_of(model))}
        write_configuration(path, model, {"quantization_config": quantization_config(model, packed)})
        copy_side_files(path, model)
        write_weights(path, tensors)
        check_folder(path, model, packed, floats)


def _held(model: nn.Module) -> tuple[dict[str, PackedMatrix], dict[str, Tensor]]:
    """What the format holds in codes, and in float; refused before anything is written."""
    packed = packed_linears(model, dtype_of(model))
    floats = float_tensors(model)
    _refuse_lossy(model, floats)
    _refuse_renamed(model, floats, packed)
    side_files(model)
    return packed, floats


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


def float_linears(model: nn.Module) -> list[str]:
    """Every name of every Linear whose weight is no code: readers take those that are not listed for packed ones.

    Args:
        model: The quantized model.
    """
    return [
        name
        for module, names in names_of_modules(model).items()
        if isinstance(module, nn.Linear) and not isinstance(module._modules.get("packed_weight"), PackedMatrix)
        for name in names
    ]


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the model but codes: what is packed in 16 bits is a plain weight of them.

    Args:
        model: The quantized model.
    """
    names = names_of_modules(model)
    storages = {name for module, found in names.items() if isinstance(module, ExactBuffers) for name in found}
    state = persistent_tensors(model)
    kept = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in storages}
    kept |= {name: tensor for module, found in names.items() for name, tensor in _halves(module, found)}
    tied = {name for name, other in tied_names(model).items() if _is_one(kept, name, other)}
    left_out = tied | unsaved_names(model, kept)
    return {name: tensor for name, tensor in kept.items() if name not in left_out}


def _halves(module: nn.Module, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    weights = module.packed_weights() if isinstance(module, PackedModule) else {}
    for key, weight in weights.items():
        if isinstance(weight, HalfWeight):
            values = weight.form.from_matrix(weight.values)
            yield from ((joined(name, key), values) for name in names)


def _is_one(tensors: Mapping[str, Tensor], name: str, other: str) -> bool:
    if name not in tensors or other not in tensors:
        return False
    return tensor_identity(tensors[name]) == tensor_identity(tensors[other])


def _refuse_lossy(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    dtype = dtype_of(model)
    parameters = {name: one for name, one in tensors.items() if one.is_floating_point() and not one.is_meta}
    lossy = lossy_casts(parameters, dtype, kept_in_float32(model))
    if lossy:
        raise FileError(
            f"transformers casts all weights to {dtype}, which would change {quoted(lossy)}: call "
            f"result.model.to({dtype}) first, and see what that costs",
            layers=[name.rpartition(".")[0] for name in lossy],
        )


def _refuse_renamed(model: nn.Module, floats: Mapping[str, Tensor], packed: Mapping[str, PackedMatrix]) -> None:
    renamed = renamed_names(model, [*floats, *(f"{name}.weight" for name in packed)])
    if renamed:
        raise FileError(
            f"transformers stores {quoted(renamed)} of a {type(model).__name__} under other names, or put together "
            "otherwise, which this format cannot be written with yet: save with format='huggingface'",
            layers=[name.rpartition(".")[0] for name in renamed],
        )


def _packed_tensors(packed: Mapping[str, PackedMatrix], dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, matrix in packed.items():
        tensors[f"{name}.weight_packed"] = packed_words(matrix)
        # In the model's dtype, in which readers multiply: some cast scales to it, others the product.
        tensors[f"{name}.weight_scale"] = matrix.scale.to(dtype)
        tensors[f"{name}.weight_shape"] = torch.tensor([matrix.rows, matrix.columns])
    return tensors


def packed_words(matrix: PackedMatrix) -> Tensor:
    """Unsigned codes in words, the first one in the lowest bits.

    Args:
        matrix: A symmetric packed weight.

    Returns:
        int32 ``[rows, ceil(columns * bits / 32)]``.
    """
    codes = matrix.qweight if matrix.scheme.bits == 4 else matrix.qweight.view(torch.uint8) ^ matrix.scheme.middle_code
    padded = nn.functional.pad(codes, (0, -codes.shape[1] % _WORD))
    return padded.contiguous().view(torch.int32)
