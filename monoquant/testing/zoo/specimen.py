"""What a specimen is: how to build a module, how to call it, and what is expected to become of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Generator, nn

Inputs = Callable[[Generator], tuple[Any, ...]]
_DEVIATION = 0.1


def _unchanged(_module: nn.Module) -> None:
    """What most specimens need besides Gaussian weights: nothing."""


@attrs.frozen(eq=False)
class Specimen:
    """A small module of one kind, with inputs, and what monoquant is expected to make of it.

    Args:
        name: Tells it from the others.
        make: Builds the module with whatever weights.
        make_inputs: Draws positional arguments for a call.
        packed: Names of the weights that are packed where nothing is skipped, by layer; default: the module's weight.
        unsupported: A part of the reason, by layer that cannot be packed, norms among them; default: none.
        in_integers: Layers that multiply integers where ``activations`` asks for it; default: none.
        reparametrize: Lets something compute weights: a parametrization, a norm, pruning. Called in place, after
            weights are Gaussian; default: nothing does.
        compilable: Whether torch.compile takes the float module as one graph; default True.
    """

    name: str
    make: Callable[[], nn.Module]
    make_inputs: Inputs
    packed: Mapping[str, tuple[str, ...]] = attrs.field(factory=lambda: {"": ("weight",)})
    unsupported: Mapping[str, str] = attrs.field(factory=dict)
    in_integers: tuple[str, ...] = ()
    reparametrize: Callable[[nn.Module], Any] = _unchanged
    compilable: bool = True

    def build(self, seed: int = 0) -> nn.Module:
        """A new module in eval mode.

        Args:
            seed: Of its weights; default 0. The global random state is left alone.

        Returns:
            The module; Gaussian matrices, as trained ones are rather than uniform, and biases that are not zero.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.make()
            make_gaussian(module)
            self.reparametrize(module)
        return module.eval()

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Positional arguments for a call of the module.

        Args:
            seed: Of their values; default 0.
        """
        return self.make_inputs(Generator("cpu").manual_seed(seed))

    @property
    def is_reparametrized(self) -> bool:
        """Whether something computes a weight; after dequantizing it is a plain parameter."""
        return self.reparametrize is not _unchanged

    def __str__(self) -> str:
        return self.name


def make_gaussian(module: nn.Module) -> None:
    """Give a module weights like trained ones; torch initializes most kinds uniformly, which hides clipping.

    All parameters are Gaussian with a deviation of 0.1, around one for the weights of norms, else around zero. Rows of
    embeddings that stand for padding are zero.

    Args:
        module: Changed in place, with torch's global random state.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scales = parameter.dim() == 1 and name.endswith("weight")  # of a norm
            parameter.normal_(mean=float(scales), std=_DEVIATION)
        for part in module.modules():
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0
