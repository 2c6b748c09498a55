"""``monoquant::packed_linear``, the operator that compilers and exporters see, whichever kernel computes it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from monoquant.kernels.base import Codes, ProductKernel, located
from monoquant.kernels.portable import Portable, dequantized

PORTABLE = Portable()
AT_PORTABLE = located(PORTABLE)

_SCHEMA = (
    "packed_linear(Tensor input, Tensor qweight, Tensor scale, Tensor? zero_point, Tensor? bias, Tensor[] derived, "
    "SymInt columns, SymInt group_size, str kernel) -> Tensor"
)
_NAME = "monoquant::packed_linear"
_LIBRARY = torch.library.Library("monoquant", "DEF")  # type: ignore[no-untyped-call]  # torch forgets an operator with the object that defined it


@functools.cache  # a fact about this environment
def kernel_at(place: str) -> ProductKernel:
    """The kernel of a class that can be imported.

    Args:
        place: ``"module:name"`` of the class, as a compiled graph or a pickle names it.

    Returns:
        The kernel; the portable one, with a warning, where there is no such class here.
    """
    module, _, name = place.partition(":")
    try:
        kind: Any = functools.reduce(getattr, name.split("."), import_module(module))
        kernel: object = kind()
    except Exception as error:  # whatever a package raises that is half installed, or made for another machine
        return _missing(place, f"{type(error).__name__}: {error}")
    return kernel if isinstance(kernel, ProductKernel) else _missing(place, "it is no ProductKernel")


def _missing(place: str, reason: str) -> ProductKernel:
    text = f"the kernel {place} cannot be used here ({reason}): the portable one computes instead; install its package"
    warnings.warn(text, RuntimeWarning, stacklevel=4)
    return PORTABLE


def _run(
    input: Tensor,
    qweight: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    derived: Sequence[Tensor],
    columns: int,
    group_size: int,
    kernel: str,
) -> Tensor:
    codes = Codes(qweight, scale, zero_point, columns, group_size)
    rows = input if input.dim() == 2 and input.is_contiguous() else input.reshape(-1, columns).contiguous()
    if torch.is_autocast_enabled(input.device.type):
        with torch._C._DisableAutocast():  # it would change the dtypes of a kernel's own sums
            output = kernel_at(kernel).multiply(rows, codes, tuple(derived), bias)
    else:
        output = kernel_at(kernel).multiply(rows, codes, tuple(derived), bias)
    return output if rows is input else output.view(*input.shape[:-1], output.shape[1])


def _shape(input: Tensor, qweight: Tensor, *_others: Any) -> Tensor:
    return input.new_empty((*input.shape[:-1], qweight.shape[0]))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - called by keyword
    _, qweight, scale, zero_point, bias, derived, columns, group_size, _ = inputs
    ctx.save_for_backward(qweight, scale, zero_point)
    ctx.sizes, ctx.derived = (columns, group_size), len(derived)
    ctx.bias = None if bias is None else bias.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    of_input, _, _, _, of_bias, *_ = ctx.needs_input_grad
    for_input = for_bias = None
    if of_input:
        weight = dequantized(Codes(*ctx.saved_tensors, *ctx.sizes))
        for_input = gradient @ weight.to(gradient.dtype)
    if of_bias:
        for_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0).to(ctx.bias)
    return for_input, None, None, None, for_bias, [None] * ctx.derived, None, None, None


_LIBRARY.define(_SCHEMA)  # type: ignore[no-untyped-call]
_LIBRARY.impl("packed_linear", _run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake(_NAME, _shape, lib=_LIBRARY)
torch.library.register_autograd(_NAME, _gradients, setup_context=_remember, lib=_LIBRARY)

packed_linear: Callable[..., Tensor] = torch.ops.monoquant.packed_linear.default
"""``input @ weight.T + bias`` with a packed weight.

Args:
    input: ``[..., columns]``, any float dtype.
    qweight, scale, zero_point, columns, group_size: As in :class:`Codes`.
    bias: ``[rows]``, or None.
    derived: What the kernel derived from them on this machine.
    kernel: Where the kernel's class can be imported from.

Returns:
    ``[..., rows]`` in the input's dtype. Gradients of input and bias are those of the exact product.
"""


def multiply(
    input: Tensor,
    packed: tuple[Tensor | None, Tensor | None, Tensor | None],
    bias: Tensor | None,
    derived: tuple[Tensor, ...],
    columns: int,
    group_size: int,
    kernel: str,
) -> Tensor:
    """Call the operator.

    Args:
        input: As of the operator; so are the others.
        packed: qweight, scale and zero_point.
        bias: As of the operator.
        derived: As of the operator.
        columns: As of the operator.
        group_size: As of the operator.
        kernel: As of the operator.
    """
    wants_gradients = torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad))
    if wants_gradients or torch.compiler.is_compiling():
        return packed_linear(input, *packed, bias, derived, columns, group_size, kernel)
    with torch._C._AutoDispatchBelowAutograd():  # asking torch whether there is nothing to do takes longer than this
        return packed_linear(input, *packed, bias, derived, columns, group_size, kernel)
