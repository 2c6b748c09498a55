"""From a scheme to the storage that implements it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from monoquant.kernels.base import RoundingKernel
from monoquant.kernels.choice import best_rounding
from monoquant.modules.half_weight import HalfWeight
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_weight import Intended, PackedWeight
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.numerics.memory import stored_bytes
from monoquant.values import AnyScheme, HalfScheme


def pack_weight(
    weight: Tensor, scheme: AnyScheme, form: MatrixForm, kernels: Iterable[RoundingKernel] = ()
) -> tuple[PackedWeight, Intended]:
    """Represent a weight by a scheme.

    Args:
        weight: A tensor of the form's shape, any real float dtype, finite.
        scheme: The representation.
        form: How the tensor is a matrix.
        kernels: Who may round it; default: torch.

    Returns:
        The packed weight, and what it must hold.
    """
    if isinstance(scheme, HalfScheme):
        return HalfWeight.pack(weight, scheme, form)
    return PackedMatrix.pack(weight, scheme, form, best_rounding(kernels, weight.dtype, weight.device, scheme))


def content_bytes(form: MatrixForm, scheme: AnyScheme) -> int:
    """Bytes that a weight takes, without the few that say what they mean.

    Args:
        form: How the tensor is a matrix.
        scheme: The representation.
    """
    packed = empty_weight(form, scheme, torch.float32)
    return stored_bytes(buffer for name, buffer in packed.named_buffers() if name != "layout")


def empty_weight(
    form: MatrixForm, scheme: AnyScheme, dtype: torch.dtype, device: torch.device | str = "meta"
) -> PackedWeight:
    """Storage to load saved buffers into.

    Args:
        form: How the tensor is a matrix.
        scheme: The representation.
        dtype: dtype of the weight when dequantized.
        device: Where the buffers live; default: nowhere yet.
    """
    if isinstance(scheme, HalfScheme):
        return HalfWeight(form, scheme, dtype=dtype, device=device)
    return PackedMatrix(form.rows, form.columns, scheme, dtype=dtype, device=device, form=form)
