"""Put saved tensors into a float model: find out first whether they fit, then change it all or not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs
import torch
from torch import Tensor, nn

from monoquant.modules.linear_like import become_int4, obstacle_to_packing
from monoquant.modules.packed_int4 import PackedInt4
from monoquant.restoring import restored_on_error
from monoquant.source import inventory, joined, names_of_modules, persistent_tensors, tensor_identity
from monoquant.values import Scheme

_CODES = "packed_weight.qweight"


@attrs.frozen
class PackedAs:
    """How a file holds one packed layer.

    Args:
        scheme: Representation of the weight.
        dtype: dtype of the weight as seen from outside.
    """

    scheme: Scheme
    dtype: torch.dtype


@attrs.frozen(eq=False)
class Fit:
    """Whether saved tensors fit a model.

    Args:
        problems: One text per problem; empty when they fit.
        packed: Packed weights by layer name, complete when there are no problems; tied layers share one.
    """

    problems: list[str]
    packed: dict[str, PackedInt4]


def examine(model: nn.Module, state: Mapping[str, Tensor], packed: Mapping[str, PackedAs]) -> Fit:
    """Find everything that keeps saved tensors from fitting a float model.

    Args:
        model: The float model; read only.
        state: Tensors by name, packed layers as their buffers.
        packed: The layers that are packed.

    Raises:
        InputError: When the model is lazy, quantized already or not a module.
    """
    inventory(model)
    problems: list[str] = []
    built: dict[str, PackedInt4] = {}
    for name, how in packed.items():
        outcome = _built(name, how, model, state)
        if isinstance(outcome, PackedInt4):
            built[name] = _tied(name, state, built) or outcome
        else:
            problems.append(outcome)
    packed_names = {name for found in names_of_modules(model).values() if found[0] in packed for name in found}
    weights = {joined(name, "weight") for name in packed_names}
    expected = {name: tensor for name, tensor in persistent_tensors(model).items() if name not in weights}
    found = {name: tensor for name, tensor in state.items() if not _is_part_of(name, packed_names | packed.keys())}
    problems += _key_misfits(expected, found) + _tie_misfits(expected, found) + _meta_misfits(model)
    return Fit(problems, built)


def fill(model: nn.Module, state: Mapping[str, Tensor], packed: Mapping[str, PackedInt4]) -> None:
    """Put tensors that fit into a model; on any exception the model is as it was.

    Args:
        model: The float model; changed in place, its ties kept.
        state: Tensors by name.
        packed: Packed weights by layer name, as :func:`examine` built them.
    """
    names = {module: found[0] for module, found in names_of_modules(model).items()}
    with restored_on_error(list(names)):
        for name, weight in packed.items():
            become_int4(model.get_submodule(name), weight)
        _replace_tensors(names, state)


def _tied(name: str, state: Mapping[str, Tensor], built: Mapping[str, PackedInt4]) -> PackedInt4 | None:
    codes = state.get(joined(name, _CODES))
    twins = (weight for other, weight in built.items() if state[joined(other, _CODES)] is codes)
    return next(twins, None)


def _built(name: str, how: PackedAs, model: nn.Module, state: Mapping[str, Tensor]) -> PackedInt4 | str:
    module = dict(model.named_modules()).get(name)
    if module is None:
        return f"no layer {name!r} in the model"
    obstacle = obstacle_to_packing(module)
    if obstacle is not None:
        return f"layer {name!r} cannot be packed: {obstacle.reason}"
    weight = module._parameters["weight"]
    if weight is None:
        return f"layer {name!r} has no weight"
    rows, columns = weight.shape
    packed = PackedInt4(rows, columns, how.scheme, dtype=how.dtype, device="meta")
    prefix = joined(name, "packed_weight.")
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    try:
        packed.load_state_dict(own, strict=True, assign=True)
    except RuntimeError as error:
        reasons = " ".join(str(error).split()[5:])
        return f"layer {name!r} of shape {(rows, columns)} does not fit: {reasons}"
    return packed if weight.is_meta else packed.to(weight.device)


def _key_misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    problems = [f"missing in the file: {name}" for name in expected if name not in found]
    problems += [f"not in the model: {name}" for name in found if name not in expected]
    for name, tensor in expected.items():
        given = tuple(found[name].shape) if name in found else tuple(tensor.shape)
        if given != tuple(tensor.shape):
            problems.append(f"{name} has shape {given} in the file, {tuple(tensor.shape)} in the model")
    return problems


def _tie_misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    leaders: dict[tuple[object, ...], str] = {}
    problems = []
    for name in sorted(expected.keys() & found.keys()):
        leader = leaders.setdefault(tensor_identity(expected[name]), name)
        if found[leader] is not found[name] and not torch.equal(found[leader], found[name]):
            problems.append(f"{leader} and {name} are tied in the model, but differ in the file")
    return problems


def _meta_misfits(model: nn.Module) -> list[str]:
    kept = set(persistent_tensors(model))
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in kept]
    return [f"buffer {name} is on the meta device and not saved: build the model on a real device" for name in lost]


def _replace_tensors(names: Mapping[nn.Module, str], state: Mapping[str, Tensor]) -> None:
    replaced: dict[int, Tensor] = {}
    shared: dict[tuple[object, ...], Tensor] = {}
    for module, name in names.items():
        for table in (module._parameters, module._buffers):
            for key, old in table.items():
                saved = state.get(joined(name, key))
                if old is None or saved is None:
                    continue
                if id(old) not in replaced:
                    data = shared.setdefault(tensor_identity(old), saved.to(_device(old), copy=True))
                    replaced[id(old)] = _like(old, data)
                table[key] = replaced[id(old)]  # type: ignore[assignment]


def _device(old: Tensor) -> torch.device:
    return torch.device("cpu") if old.is_meta else old.device


def _like(old: Tensor, data: Tensor) -> Tensor:
    return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data


def _is_part_of(key: str, layers: Collection[str]) -> bool:
    layer, mark, _ = key.rpartition("packed_weight.")
    return bool(mark) and layer.rstrip(".") in layers
