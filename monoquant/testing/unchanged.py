"""Whether a model, and torch's global settings, are what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@attrs.frozen(eq=False)
class ModelState:
    """All of a model that a pass, or an exception, must not change.

    Args:
        tensors: Copies of all parameters and buffers, by name.
        aspects: The rest, by what a person calls it, then by name.
    """

    tensors: dict[str, Tensor]
    aspects: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module) -> ModelState:
        """Remember a model.

        Args:
            model: Weights may be on the meta device.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        held = _held(model)
        return cls(
            {name: tensor.detach().clone() for name, tensor in held.items()},
            {
                "class": {name: type(module) for name, module in modules.items()},
                "identity": {name: id(module) for name, module in modules.items()},
                "training flag": {name: module.training for name, module in modules.items()},
                "hooks": {name: _hooks(module) for name, module in modules.items()},
                "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
                "tensor object": {name: id(tensor) for name, tensor in held.items()},
                "requires_grad": {name: tensor.requires_grad for name, tensor in held.items()},
                "gradient": {name: id(tensor.grad) if tensor.is_leaf else None for name, tensor in held.items()},
            },
        )

    def differences(self, model: nn.Module) -> list[str]:
        """What is not as it was.

        Args:
            model: The one that was remembered.

        Returns:
            Texts such as ``"values of blocks.0.weight"``; empty where all is bit for bit the same.
        """
        now = ModelState.of(model)
        found = [
            f"{aspect} of {name or '(root)'}"
            for aspect, before in self.aspects.items()
            for name in {**before, **now.aspects[aspect]}
            if before.get(name) != now.aspects[aspect].get(name)
        ]
        values = [
            f"values of {name}"
            for name, before in self.tensors.items()
            if name in now.tensors and not _same_bits(before, now.tensors[name])
        ]
        return [*values, *found]


def _held(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict[str, Tensor](model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _hooks(module: nn.Module) -> list[int]:
    return [len(getattr(module, name, ())) for name in _HOOKS]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit; NaN is the same as NaN."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return one.is_meta or torch.equal(_bits(one), _bits(other))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_unchanged(model: nn.Module, before: ModelState) -> None:
    """Fail if a model is not what it was, and say in what.

    Args:
        model: The model.
        before: What ``ModelState.of(model)`` was.

    Raises:
        AssertionError: Naming every difference.
    """
    differences = before.differences(model)
    if differences:
        raise AssertionError(f"the model was changed: {', '.join(differences)}")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Fail if a block changes a model, also where it raises.

    Args:
        model: The model.

    Raises:
        AssertionError: Naming every difference; an exception of the block is its cause.
    """
    before = ModelState.of(model)
    try:
        yield
    finally:
        assert_unchanged(model, before)


def torch_settings() -> dict[str, Any]:
    """Torch's global settings that code of a library must leave alone, by name, the random state among them."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "random state": bytes(torch.get_rng_state().tolist()),
    }
