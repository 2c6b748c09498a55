"""Modules that multiply INT8 inputs with INT8 weights, instead of dequantizing the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from monoquant.errors import InputError
from monoquant.modules.exact_buffers import ExactBuffers
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.integer_product import MIDDLE, integer_product, quantize_rows, quantize_to_range


class IntegerCompute(PackedModule):
    """Mixin of Linear-like modules that multiply integers: ``y = ((codes - zero) @ qweight.T) * scales + bias``.

    Gradients of inputs and bias pass straight through the rounding (Bengio et al. 2013).
    """

    packed_weight: PackedMatrix

    def integer_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The product in integers.

        Args:
            rows: ``[n, in_features]``.

        Returns:
            int32 sums ``[n, out_features]``, and the float32 scale of each input row ``[n, 1]``.
        """
        raise NotImplementedError  # no ABC: its metaclass would clash with that of a module's own class

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: ``[..., in_features]``, any float dtype.

        Returns:
            ``[..., out_features]``, same dtype.
        """
        packed = self.packed_weight
        if input.is_nested:
            return torch.nested.as_nested_tensor([self.forward(part) for part in input.unbind()], layout=input.layout)
        if input.shape[-1] != packed.columns:
            raise InputError(f"input of shape {tuple(input.shape)}: this layer takes {packed.columns} input features")
        sums, scale = self.integer_rows(input.detach().reshape(-1, packed.columns))
        product = sums.to(torch.float32).mul_(scale).mul_(packed.scale.to(torch.float32).t())
        output = product.to(input.dtype).view(*input.shape[:-1], packed.rows)
        if torch.is_grad_enabled() and input.requires_grad:
            straight = functional.linear(input, packed.dequantized_rows(slice(None)).to(input.dtype))
            output = straight + (output - straight).detach()
        bias: Tensor | None = self._parameters["bias"]
        return output if bias is None else output + bias


class Int8Dynamic(IntegerCompute):
    """Each input row is quantized by its own largest magnitude, on each call."""

    _title = "Int8Dynamic"

    def integer_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = quantize_rows(rows)
        return integer_product(codes, MIDDLE, self.packed_weight.qweight), scale


class InputQuantizer(ExactBuffers):
    """The range of a static layer's inputs.

    Args:
        scale: ``[]``: the step of the inputs' codes, > 0; kept as float32.
        zero_point: ``[]``: the code of zero, 0..255; kept as int32.
    """

    scale: Tensor
    zero_point: Tensor
    kept_exact = ("scale",)

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.to(torch.float32))
        self.register_buffer("zero_point", zero_point.to(torch.int32))

    def extra_repr(self) -> str:
        if self.scale.is_meta:
            return "static int8 inputs"
        return f"scale={float(self.scale):.4g}, zero_point={int(self.zero_point)}"


class Int8Static(IntegerCompute):
    """All inputs are quantized with the range that calibration found; what lies outside of it is clipped."""

    _title = "Int8Static"
    packed_input: InputQuantizer

    def integer_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        known = self.packed_input
        codes, scale = quantize_to_range(rows, known.scale, known.zero_point)
        return integer_product(codes, known.zero_point, self.packed_weight.qweight), scale


def runs_in_integers(module: Any) -> bool:
    """Whether a module multiplies integers.

    Args:
        module: Anything.
    """
    return isinstance(module, IntegerCompute)
