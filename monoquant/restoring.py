"""Leave a model as it was: after an exception, and after a forward that caches."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from monoquant.errors import InputError, quoted

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


@contextmanager
def restored_on_error(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo every change of class and attributes of the modules if the block raises.

    Args:
        modules: The modules that the block may change; tensors must be replaced, not written to.
    """
    restore = _restorer(modules)
    try:
        yield
    except BaseException:
        restore()
        raise


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, and leave the model as it was.

    Restored are training flags, hooks, attributes, the content of plain containers (lists, dicts, sets and deques, also
    nested ones) and of buffers, and embeddings that renormalize themselves: what a forward caches does not stay.

    Args:
        model: The model the block runs.

    Raises:
        InputError: When the model wrote to its own parameters, which is found out but cannot be undone.
    """
    modules = list(model.modules())
    restore = _restorer(modules)
    watched = {name: parameter for name, parameter in model.named_parameters() if not parameter.is_inference()}
    contents = [(tensor, tensor._version, tensor.clone()) for tensor in _writable(modules)]
    recovered = {id(tensor) for tensor, _, _ in contents}
    versions = {name: parameter._version for name, parameter in watched.items()}
    try:
        with torch.no_grad(), _eager_stance(modules):
            for module in modules:
                module.training = False
            yield
    finally:
        restore()
        with torch.no_grad():
            for tensor, version, content in contents:
                if tensor._version != version:
                    tensor.copy_(content)
    written = [
        name for name, found in watched.items() if found._version != versions[name] and id(found) not in recovered
    ]
    if written:
        raise InputError(
            f"the model's forward writes to its own parameters: {quoted(written)}; calibrate one that does not",
            layers=written,
        )


def _eager_stance(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Run compiled modules eagerly, because code that was compiled before would not call new hooks."""
    compiled = any(
        type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None for module in modules
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _writable(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Tensors that a forward may write to in eval mode: buffers, and embeddings with a max_norm."""
    for module in modules:
        renormalizes = getattr(module, "max_norm", None) is not None
        for tensor in (*module.buffers(recurse=False), *(module.parameters(recurse=False) if renormalizes else ())):
            plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_inference()
            if plain and 0 not in tensor.stride():  # nobody can write to an expanded tensor
                yield tensor


def _restorer(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Remember class, attributes and plain containers of modules; the result puts all back."""
    # A scripted module keeps its state in C++, where no attribute but the flag can be exchanged.
    everything = list(modules)
    flags = [(module, module.training) for module in everything]
    plain = [module for module in everything if not isinstance(module, torch.jit.ScriptModule)]
    saved = [(module, module.__class__, dict(vars(module))) for module in plain]
    containers: dict[int, Any] = {}
    for _, _, state in saved:
        _find_containers(state.values(), containers)
    contents = [(container, container.copy()) for container in containers.values()]

    def restore() -> None:
        for module, training in flags:
            module.training = training
        for module, kind, state in saved:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(state)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, (list, deque)) else container.update(content)

    return restore


def _find_containers(values: Iterable[object], found: dict[int, Any]) -> None:
    for value in values:
        if type(value) in _CONTAINERS and id(value) not in found:
            found[id(value)] = value
            _find_containers(value.values() if isinstance(value, dict) else cast("Iterable[object]", value), found)
