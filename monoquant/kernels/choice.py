"""Which kernel multiplies or packs: chosen when a matrix is built, moved or loaded, and never in a forward."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import attrs
import torch

from monoquant.errors import require_flag
from monoquant.kernels.base import EXACT, Kernel, Product, ProductKernel, RoundingKernel, located
from monoquant.kernels.checking import disagreement
from monoquant.kernels.cuda_bf16 import CudaBf16
from monoquant.kernels.op import AT_PORTABLE, PORTABLE, kernel_at
from monoquant.kernels.rounding import PortableRounding
from monoquant.kernels.torch_bf16 import TorchBf16
from monoquant.values import Scheme

PORTABLE_ROUNDING = PortableRounding()
BUILT_IN_KERNELS: tuple[Kernel, ...] = (PORTABLE, TorchBf16(), CudaBf16(), PORTABLE_ROUNDING)


def _places(kernels: Any) -> tuple[str, ...]:
    return tuple(kernel if isinstance(kernel, str) else located(kernel) for kernel in kernels)


def _check_exact(_instance: Any, _attribute: Any, value: Any) -> None:
    require_flag("exact", value)


@attrs.frozen
class Offer:
    """Kernels to choose from.

    Args:
        places: Product kernels, or where their classes can be imported from; the portable one is always among them.
        exact: Whether only those are allowed that are as exact as a float32 product; default True.
    """

    places: tuple[str, ...] = attrs.field(default=(AT_PORTABLE,), converter=_places)
    exact: bool = attrs.field(default=True, validator=_check_exact)

    def best(self, product: Product) -> ProductKernel:
        """The preferred one of those that can multiply, by name where several are preferred alike.

        Args:
            product: What is to be multiplied.
        """
        fitting = [
            kernel
            for kernel in map(kernel_at, self.places)
            if kernel.obstacle(product) is None
            and (kernel.relative_error <= EXACT or not self.exact)
            and _is_sound(kernel)
        ]
        return min(fitting, key=lambda kernel: (-kernel.preference, kernel.name), default=PORTABLE)


def _is_sound(kernel: ProductKernel) -> bool:
    """Whether a kernel computes here what it should: one that a pickle names was never tried on this machine."""
    if type(kernel).__module__.startswith("monoquant."):
        return True
    problem = disagreement(kernel)
    if problem is not None:
        text = f"kernel {kernel.name} is not used: {problem}; another one takes its place"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    return problem is None


def best_rounding(
    kernels: Iterable[RoundingKernel], dtype: torch.dtype, device: torch.device, scheme: Scheme
) -> RoundingKernel:
    """The preferred one of the kernels that can pack, by name where several are preferred alike.

    Args:
        kernels: To choose from.
        dtype: Of the weights.
        device: Where they are.
        scheme: To what.
    """
    fitting = [kernel for kernel in kernels if kernel.obstacle(dtype, device, scheme) is None]
    return min(fitting, key=lambda kernel: (-kernel.preference, kernel.name), default=PORTABLE_ROUNDING)


def describe(kernel: ProductKernel) -> str:
    """What a report says of a kernel.

    Args:
        kernel: The kernel.
    """
    error = f", relative error up to {kernel.relative_error:g}" if kernel.relative_error > EXACT else ""
    return f"multiplied by {kernel.name}{error}"
