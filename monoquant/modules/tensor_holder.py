"""A state dict as a tree of modules: no forward, but names, shapes and ties like those of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.errors import InputError, quoted

_EMBEDDING_NAMES = re.compile(r"embed|(^|_)emb|^w[tp]e$", re.IGNORECASE)
_PACKED = re.compile(r"(^|\.)packed_[^.]+\.layout$")
_LAYOUT = ".layout"
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+.*)?$")
_KINDS_BY_AXES: dict[int, type[nn.Module]] = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class TensorHolder(nn.Module):
    """Holds the tensors that a state dict keeps under one prefix.

    Args:
        name: The prefix, by which embeddings are told from linear layers; default: none.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = name

    def forward(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse to run.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "a state dict cannot be run: save() the result, and load() it into a model of its architecture"
        )

    @property
    def is_in_parametrization(self) -> bool:
        """Whether the prefix is one that torch's parametrizations use."""
        return "parametrizations" in self._name.split(".")

    @property
    def stands_for(self) -> type[nn.Module]:
        """The module class that the tensors look like; TensorHolder itself where they look like none.

        A ``weight`` of two axes is a Linear, or an Embedding if a part of its name contains ``embed`` or ``_emb``,
        begins with ``emb``, or is ``wte`` or ``wpe``; of three to five axes a convolution; of one axis a norm
        (BatchNorm2d where there is a ``running_mean``, else LayerNorm). ``weight_ih`` and its like are an LSTM.
        """
        if any(_RECURRENT.match(key) for key in self._parameters):
            return nn.LSTM
        weight = self._parameters.get("weight")
        if weight is None:
            return TensorHolder
        if weight.dim() < 2:
            return nn.BatchNorm2d if "running_mean" in self._buffers else nn.LayerNorm
        if weight.dim() == 2 and any(map(_EMBEDDING_NAMES.search, self._name.split("."))):
            return nn.Embedding
        return _KINDS_BY_AXES.get(weight.dim(), TensorHolder)


def hold(state: Mapping[str, Tensor]) -> TensorHolder:
    """Arrange a state dict as modules, one for each prefix.

    Args:
        state: Tensors by dotted name; they are held, not copied. Floats become parameters, the rest buffers.

    Returns:
        The root; its ``state_dict()`` has the same names in the same order, apart from sorting by module.

    Raises:
        InputError: For names or values that no module can hold; all of them are named.
    """
    require_state(state)
    _refuse_packed(state)
    root = TensorHolder()
    strange = [name for name, tensor in state.items() if not _place(root, name, tensor)]
    if strange:
        raise InputError(f"no module can hold tensors of these names: {quoted(strange)}; rename them", layers=strange)
    return root


def require_state(state: Mapping[str, Tensor]) -> None:
    """Refuse what is no state dict, as what a file holds may be.

    Args:
        state: What is to map names to tensors.

    Raises:
        InputError: For mappings in it, other values, names that are no texts, and nothing at all.
    """
    nested = [name for name, value in state.items() if isinstance(value, Mapping)]
    if nested:
        raise InputError(
            f"the state dict is one level deeper: {quoted(map(str, nested))} hold mappings; give one of them, as in "
            f"quantize(state[{nested[0]!r}])"
        )
    others = [str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise InputError(f"a state dict maps names to tensors, and these do not: {quoted(others)}; leave them out")
    if not state:
        raise InputError("the state dict is empty: give the weights of a model")


def _refuse_packed(state: Mapping[str, Tensor]) -> None:
    layouts = [name for name, tensor in state.items() if _PACKED.search(name) and tensor.dtype == torch.int32]
    packed = [name.removesuffix(_LAYOUT) for name in layouts]
    if packed:
        raise InputError(
            f"already quantized: {quoted(packed)}; start again from the float weights, or give the file to load()",
            layers=packed,
        )


def _place(root: TensorHolder, name: str, tensor: Tensor) -> bool:
    *path, key = name.split(".")
    holder: nn.Module = root
    for depth, part in enumerate(path):
        child = holder._modules.get(part)
        if child is None:
            if not part or hasattr(holder, part):
                return False
            child = TensorHolder(".".join(path[: depth + 1]))
            holder._modules[part] = child
        holder = child
    if not key or hasattr(holder, key):
        return False
    if tensor.is_floating_point() and key not in ("running_mean", "running_var"):
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        holder._parameters[key] = parameter
    else:
        holder._buffers[key] = tensor
    return True
