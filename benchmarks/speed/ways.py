"""What is measured: one way to quantize Linear layers. Peers' environments import this too, so it needs torch alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

GROUP = 128


@dataclass(frozen=True)
class Product:
    """One packed layer.

    Attributes:
        call: Multiplies inputs `[M, in]` with it.
        weight: What the packed weight stands for, `[out, in]`; None where the library does not tell.
        kernel: What multiplies, where the library tells.
    """

    call: Callable[[Tensor], Tensor]
    weight: Tensor | None = None
    kernel: str = ""


@dataclass(frozen=True)
class Runner:
    """A model that is no module.

    Attributes:
        calls: What is timed, in the order of the subject's calls.
        loss: How far its answers are from those of the float model.
    """

    calls: Mapping[str, Callable[[], object]]
    loss: float


@dataclass(frozen=True)
class Way:
    """One way to quantize.

    Attributes:
        name: For the tables.
        bits: Bits of the format per weight, scales and zero points included: what a product cannot but read.
        dtypes: Of float models that it takes, as torch calls them.
        integer: Whether activations are rounded to 8 bits, and products are of integers.
        quantize: Gives the quantized model for a float model, which it may change. None for what knows no modules.
        weight: What a quantized Linear's weight stands for.
        kernel: The name of a quantized Linear's kernel.
        multiply: Packs one Linear, for what knows no modules.
        part: Share of the weights that quantization is timed on; the rest is estimated.
        models: Whether it is measured on whole models.
        run: Runs a subject, for what knows no modules.
        subjects: The names of those that `run` can run.
        quantization: Whether quantization is timed.
    """

    name: str
    bits: float
    dtypes: tuple[str, ...] = ("float32",)
    integer: bool = False
    quantize: Callable[[nn.Module], nn.Module] | None = None
    weight: Callable[[Any], Tensor] | None = None
    kernel: Callable[[Any], str] | None = None
    multiply: Callable[[nn.Linear], Product] | None = None
    part: float = 1.0
    models: bool = True
    run: Callable[[Any], Runner] | None = None
    subjects: tuple[str, ...] = ()
    quantization: bool = True

    def product(self, linear: nn.Linear) -> Product:
        """Pack a copy of one layer.

        Args:
            linear: The float layer, in a dtype that this takes.

        Raises:
            RuntimeError: When the library leaves the layer as it is.
        """
        if self.multiply is not None:
            return self.multiply(linear)
        if self.quantize is None:
            raise RuntimeError(f"{self.name} multiplies nothing")
        before = nn.Sequential(copy.deepcopy(linear))
        float_weight = before[0].weight
        packed = self.quantize(before)[0]  # type: ignore[index]
        if getattr(packed, "weight", None) is float_weight:
            raise RuntimeError("the library left the layer as it is")
        weight = None if self.weight is None else self.weight(packed).detach()
        return Product(packed, weight, "" if self.kernel is None else self.kernel(packed))


def body(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The Linear layers of a float model that everybody quantizes: all but the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_body(module, name):
            yield name, module


def is_body(module: nn.Module, name: str) -> bool:
    """Whether everybody quantizes this module."""
    return isinstance(module, nn.Linear) and not name.endswith("lm_head")


def replace_layers(model: nn.Module, replace: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Put something else in the place of every layer of the body, one at a time."""
    for name, layer in list(body(model)):
        model.set_submodule(name, replace(layer))
    return model


def model_dtype(name: str) -> torch.dtype:
    """A dtype by torch's name for it."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
