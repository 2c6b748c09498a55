"""Put saved tensors into a float model: find out first whether they fit, then change it all or not at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from monoquant.adapters.base import ModuleAdapter, Obstacle
from monoquant.adapters.choice import Packable
from monoquant.adapters.choice import examine as examine_module
from monoquant.conversion import convert_in_place
from monoquant.errors import ConfigError, FileError
from monoquant.modules.integer_compute import InputQuantizer
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PREFIX, PackedModule
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.reparametrized import replaced_tensors
from monoquant.modules.storage import empty_weight
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.progress import Progress
from monoquant.restoring import restored_on_error
from monoquant.source import inventory, joined, names_of_modules, own_tensors, persistent_tensors, tensor_identity
from monoquant.values import AnyScheme, Scheme


@attrs.frozen
class PackedAs:
    """How a file holds one packed layer.

    Args:
        scheme: Representation of the weights.
        dtype: dtype of the weights as seen from outside.
        forms: Shape and matrix of each weight by parameter name.
    """

    scheme: AnyScheme
    dtype: torch.dtype
    forms: Mapping[str, MatrixForm]


@attrs.frozen(eq=False)
class Fit:
    """Whether saved tensors fit a model.

    Args:
        problems: One text per problem; empty when they fit.
        packed: Packed layers by name, complete when there are no problems; tied ones share their weight.
    """

    problems: list[str]
    packed: dict[str, PackedLayer]


def examine(
    model: nn.Module,
    state: Mapping[str, Tensor],
    packed: Mapping[str, PackedAs],
    adapters: Iterable[ModuleAdapter],
) -> Fit:
    """Find everything that keeps saved tensors from fitting a float model.

    Args:
        model: The float model; read only.
        state: Tensors by name, packed layers as their buffers.
        packed: The layers that are packed.
        adapters: Adapters by priority.

    Raises:
        InputError: When the model is lazy, quantized already or not a module.
    """
    inventory(model)
    problems: list[str] = []
    built: dict[str, PackedLayer] = {}
    shared: dict[int, PackedWeight] = {}
    modules, known = dict(model.named_modules(remove_duplicate=False)), list(adapters)
    for name, how in packed.items():
        module = modules.get(name)
        outcome: str | PackedLayer = f"no layer {name!r} in the model"
        if module is not None:
            outcome = _problem_of_layer(name, how, module, known) or _built(name, how, module, state, known, shared)
        if isinstance(outcome, PackedLayer):
            built[name] = outcome
        else:
            problems.append(outcome)
    replaced, storages = _replaced_names(model, packed)
    expected = {name: tensor for name, tensor in persistent_tensors(model).items() if name not in replaced}
    found = {name: tensor for name, tensor in state.items() if not _is_part_of(name, storages)}
    problems += _key_misfits(expected, found) + _tie_misfits(expected, found) + _meta_misfits(model)
    return Fit(problems, built)


def fill(model: nn.Module, state: Mapping[str, Tensor], packed: Mapping[str, PackedLayer]) -> None:
    """Put tensors that fit into a model; on any exception the model is as it was.

    Args:
        model: The float model; changed in place, its ties kept.
        state: Tensors by name.
        packed: Packed layers by name, as :func:`examine` built them.
    """
    names = {module: found[0] for module, found in names_of_modules(model).items()}
    with restored_on_error(list(names)):
        convert_in_place(model, packed)
        _replace_tensors(names, state)


def dequantized_state(
    path: Path, state: Mapping[str, Tensor], packed: Mapping[str, PackedAs], progress: Progress
) -> dict[str, Tensor]:
    """Packed layers as the float weights that they stand for; all other tensors as they are.

    Args:
        path: The file they are of, for errors.
        state: Tensors by name, packed layers as their buffers.
        packed: The layers that are packed.
        progress: Told how many of them are done.

    Raises:
        FileError: When buffers are missing, or are not what their layer needs.
    """
    storages = {joined(name, part) for name, how in packed.items() for part in _added(how)}
    found = {name: tensor for name, tensor in state.items() if not _is_part_of(name, storages)}
    problems = []
    for number, (name, how) in enumerate(packed.items(), 1):
        for key, form in how.forms.items():
            try:
                weight = _loaded(empty_weight(form, how.scheme, how.dtype), _buffers(name, key, state))
                found[joined(name, key)] = weight.dequantize()
            except (RuntimeError, ConfigError) as error:
                problems.append(f"layer {name!r}: {_reasons(error)}")
        progress(number, len(packed))
    if problems:
        raise FileError(f"{path}: its tensors are not those of its layers: {'; '.join(problems)}")
    return found


def _replaced_names(model: nn.Module, packed: Mapping[str, PackedAs]) -> tuple[set[str], set[str]]:
    """Full names of the tensors that packing replaces, and of the submodules that it adds, under all their names."""
    replaced: set[str] = set()
    storages = {joined(name, part) for name, how in packed.items() for part in _added(how)}
    for module, names in names_of_modules(model).items():
        known = [name for name in names if name in packed]
        if known:
            how = packed[known[0]]
            replaced |= {joined(name, key) for name in names for key in replaced_tensors(module, how.forms)}
            storages |= {joined(name, part) for name in names for part in _added(how)}
    return replaced, storages


def _added(how: PackedAs) -> list[str]:
    static = isinstance(how.scheme, Scheme) and how.scheme.activations == "static"
    return [PREFIX + key for key in (*how.forms, *(["input"] if static else []))]


def _problem_of_layer(name: str, how: PackedAs, module: nn.Module, adapters: list[ModuleAdapter]) -> str | None:
    """What keeps a module from taking the weights that a file holds for it."""
    outcome = examine_module(module, adapters)
    held = {key: buffer for key, buffer in module._buffers.items() if buffer is not None}
    if isinstance(outcome, Obstacle) and how.forms.keys() <= held.keys():
        wrong = [key for key, form in how.forms.items() if tuple(held[key].shape) != form.shape]
        return _shape_problem(name, wrong[0], tuple(held[wrong[0]].shape), how) if wrong else None
    if isinstance(outcome, Obstacle):
        remedy = f"; {outcome.remedy}" if outcome.remedy else ""
        return f"layer {name!r} cannot be packed: {outcome.reason}{remedy}"
    if isinstance(how.scheme, Scheme) and how.scheme.activations is not None:
        obstacle = outcome.adapter.integer_obstacle(module, outcome.forms)
        if obstacle is not None:
            return f"layer {name!r} multiplied integers, and cannot here: {obstacle}"
        if how.forms != outcome.forms:
            return f"layer {name!r} keeps its weight in another order than the {type(module).__name__} of the model"
    tensors = {key: tensor for key, tensor in _shapes(module, outcome).items() if key in how.forms}
    missing = sorted(how.forms.keys() - tensors.keys())
    if missing:
        return f"layer {name!r} has no {', '.join(missing)}"
    wrong = [key for key, shape in tensors.items() if shape != how.forms[key].shape]
    return _shape_problem(name, wrong[0], tensors[wrong[0]], how) if wrong else None


def _shape_problem(name: str, key: str, own: tuple[int, ...], how: PackedAs) -> str:
    stored = how.forms[key].shape
    return f"layer {name!r} of shape {own} does not fit: its {key} has shape {stored} in the file"


def _shapes(module: nn.Module, packable: Packable) -> dict[str, tuple[int, ...]]:
    own = {name: tuple(tensor.shape) for name, tensor in own_tensors(module).items()}
    return own | {name: form.shape for name, form in packable.forms.items()}


def _built(
    name: str,
    how: PackedAs,
    module: nn.Module,
    state: Mapping[str, Tensor],
    adapters: list[ModuleAdapter],
    shared: dict[int, PackedWeight],
) -> PackedLayer | str:
    outcome = examine_module(module, adapters)
    weights: dict[str, PackedWeight] = {}
    device = next((tensor.device for tensor in own_tensors(module).values()), torch.device("cpu"))
    for key, form in how.forms.items():
        own = _buffers(name, key, state)
        layout = own.get("layout")
        if layout is not None and id(layout) in shared:
            weights[key] = shared[id(layout)]
            continue
        try:
            loaded = _loaded(empty_weight(form, how.scheme, how.dtype), own)
        except (RuntimeError, ConfigError) as error:
            return f"layer {name!r} of shape {form.shape} does not fit: {_reasons(error)}"
        weights[key] = shared[id(layout)] = loaded if device.type == "meta" else loaded.to(device)
    # An adapter may take other weights than the file holds, as where a state dict of a weight-normed model was packed.
    agreed = isinstance(outcome, Packable) and how.forms.keys() <= outcome.forms.keys()
    mixin = outcome.adapter.mixin(module, how.scheme) if isinstance(outcome, Packable) and agreed else PackedModule
    try:
        return PackedLayer(weights, mixin, _extras(name, how, weights, state))
    except RuntimeError as error:
        return f"layer {name!r} does not fit: {_reasons(error)}"


def _buffers(layer: str, weight: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = joined(layer, f"{PREFIX}{weight}.")
    return {part.removeprefix(prefix): tensor for part, tensor in state.items() if part.startswith(prefix)}


def _reasons(error: Exception) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^Error\(s\) in loading state_dict for \w+: ", "", text)


def _loaded(weight: PackedWeight, buffers: Mapping[str, Tensor]) -> PackedWeight:
    weight.load_state_dict(buffers, strict=True, assign=True)
    return weight


def _extras(
    name: str, how: PackedAs, weights: Mapping[str, PackedWeight], state: Mapping[str, Tensor]
) -> dict[str, nn.Module]:
    weight = weights.get("weight")
    if not (isinstance(how.scheme, Scheme) and how.scheme.activations == "static" and isinstance(weight, PackedMatrix)):
        return {}
    prefix = joined(name, f"{PREFIX}input.")
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    device = weight.layout.device  # also where another one is torch's default
    known = InputQuantizer(torch.ones((), device=device), torch.zeros((), device=device), weight)
    known.load_state_dict(own, strict=True)
    return {f"{PREFIX}input": known}


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


def _is_part_of(key: str, storages: Collection[str]) -> bool:
    """Whether a tensor of a file belongs to one of the submodules that packing adds."""
    return key.rpartition(".")[0] in storages
