"""Put saved tensors into a float model: find out first whether they fit, then change it all or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from monoquant.conversion import restored_on_error
from monoquant.modules.linear_like import become_int4, obstacle_to_packing
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.source import inventory, names_of_modules, persistent_tensors, tensor_identity
from monoquant.values import Scheme


@attrs.frozen
class PackedAs:
    """How a file holds one packed layer.

    Args:
        scheme: Representation of the weight.
        dtype: dtype of the weight as seen from outside.
    """

    scheme: Scheme
    dtype: torch.dtype


def misfits(model: nn.Module, state: Mapping[str, Tensor], packed: Mapping[str, PackedAs]) -> list[str]:
    """Everything that keeps saved tensors from fitting a float model.

    Args:
        model: The float model; read only.
        state: Tensors by name, packed layers as their buffers.
        packed: The layers that are packed.

    Returns:
        One text per problem; empty when they fit.

    Raises:
        InputError: When the model is lazy, quantized already or not a module.
    """
    inventory(model)
    modules = dict(model.named_modules())
    problems = [problem for name in packed for problem in _layer_misfits(name, modules.get(name), state)]
    expected = {name: tensor for name, tensor in persistent_tensors(model).items() if name not in _weights(packed)}
    found = {name: tensor for name, tensor in state.items() if not _belongs_to(name, packed)}
    problems += [f"missing in the file: {name}" for name in expected if name not in found]
    problems += [f"not in the model: {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        given, wanted = tuple(found[name].shape), tuple(expected[name].shape)
        if given != wanted:
            problems.append(f"{name} has shape {given} in the file, {wanted} in the model")
    return sorted(problems) + _tie_misfits(expected, found) + _meta_misfits(model)


def fill(model: nn.Module, state: Mapping[str, Tensor], packed: Mapping[str, PackedAs]) -> None:
    """Put tensors that fit into a model; on any exception the model is as it was.

    Args:
        model: The float model; changed in place, its ties kept.
        state: Tensors by name.
        packed: The layers that are packed.
    """
    names = {module: found[0] for module, found in names_of_modules(model).items()}
    with restored_on_error(list(names)):
        built: dict[tuple[object, ...], PackedInt4] = {}
        modules = {name: model.get_submodule(name) for name in packed}
        for name, how in packed.items():
            key = tensor_identity(state[_join(name, "packed_weight.qweight")])
            if key not in built:
                built[key] = _packed(name, how, modules[name], state)
            become_int4(modules[name], built[key])
        _replace_tensors(names, state)


def _layer_misfits(name: str, module: nn.Module | None, state: Mapping[str, Tensor]) -> Iterator[str]:
    if module is None:
        yield f"no layer {name!r} in the model"
        return
    obstacle = obstacle_to_packing(module)
    if obstacle is not None:
        yield f"layer {name!r} cannot be packed: {obstacle.reason}"
        return
    layout = state.get(_join(name, "packed_weight.layout"))
    if layout is None or layout.numel() != 6:
        yield f"missing in the file: {_join(name, 'packed_weight.layout')}"
        return
    _, _, rows, columns, _, _ = layout.tolist()
    shape = tuple(module.weight.shape) if isinstance(module.weight, Tensor) else ()
    if (rows, columns) != shape:
        yield f"layer {name!r} has shape {(rows, columns)} in the file, {shape} in the model"


def _tie_misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    leaders: dict[tuple[object, ...], str] = {}
    problems = []
    for name in expected.keys() & found.keys():
        leader = leaders.setdefault(tensor_identity(expected[name]), name)
        if found[leader] is not found[name] and not torch.equal(found[leader], found[name]):
            problems.append(f"{leader} and {name} are tied in the model, but differ in the file")
    return sorted(problems)


def _meta_misfits(model: nn.Module) -> list[str]:
    kept = set(persistent_tensors(model))
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in kept]
    return [f"buffer {name} is on the meta device and not saved: build the model on a real device" for name in lost]


def _packed(name: str, how: PackedAs, module: nn.Module, state: Mapping[str, Tensor]) -> PackedInt4:
    weight = module.weight
    device = weight.device if isinstance(weight, Tensor) and not weight.is_meta else torch.device("cpu")
    rows, columns = tuple(weight.shape) if isinstance(weight, Tensor) else (0, 0)
    packed = PackedInt4(rows, columns, how.scheme, dtype=how.dtype, device=device)
    prefix = _join(name, "packed_weight.")
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    packed.load_state_dict(own, strict=True)
    return packed


def _replace_tensors(names: Mapping[nn.Module, str], state: Mapping[str, Tensor]) -> None:
    replaced: dict[int, Tensor] = {}
    for module, name in names.items():
        for table in (module._parameters, module._buffers):
            for key, old in table.items():
                saved = state.get(_join(name, key))
                if old is None or saved is None:
                    continue
                if id(old) not in replaced:
                    replaced[id(old)] = _like(old, saved)
                table[key] = replaced[id(old)]  # type: ignore[assignment]


def _like(old: Tensor, saved: Tensor) -> Tensor:
    fresh = saved.to("cpu" if old.is_meta else old.device, copy=True)
    return nn.Parameter(fresh, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else fresh


def _weights(packed: Mapping[str, PackedAs]) -> set[str]:
    return {_join(name, "weight") for name in packed}


def _belongs_to(key: str, packed: Mapping[str, PackedAs]) -> bool:
    layer, mark, _ = key.rpartition("packed_weight.")
    return bool(mark) and layer.rstrip(".") in packed


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
