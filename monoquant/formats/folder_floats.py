"""What a folder for other tools holds beside codes, and what of it they would not read as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from monoquant.errors import FileError, quoted
from monoquant.formats.folder import (
    dtype_of,
    kept_in_float32,
    lossy_casts,
    renamed_names,
    tied_names,
    unsaved_names,
)
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.source import joined, names_of_modules, persistent_tensors, tensor_identity


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


def held_floats(model: nn.Module, packed: Iterable[str]) -> dict[str, Tensor]:
    """All tensors of the model but codes, refused where readers would change them.

    Args:
        model: The quantized model.
        packed: Names of its layers in codes.

    Returns:
        By name; what is packed in 16 bits is a plain weight of them.

    Raises:
        FileError: When transformers would cast or rename some of them; all are named, with the way out.
    """
    floats = float_tensors(model)
    _refuse_lossy(model, floats)
    _refuse_renamed(model, [*floats, *(f"{name}.weight" for name in packed)])
    return floats


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


def _refuse_renamed(model: nn.Module, names: Iterable[str]) -> None:
    renamed = renamed_names(model, names)
    if renamed:
        raise FileError(
            f"transformers stores {quoted(renamed)} of a {type(model).__name__} under other names, or put together "
            "otherwise, which this format cannot be written with yet: save with format='huggingface'",
            layers=[name.rpartition(".")[0] for name in renamed],
        )
