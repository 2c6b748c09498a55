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
from monoquant.numerics.integer_product import exact_method, integer_product, quantize_rows, quantize_to_range


class IntegerCompute(PackedModule):
    """Mixin of Linear-like modules that multiply integers: ``y = (codes @ qweight.T) * scales + bias``.

    Gradients of inputs and bias pass straight through the rounding (Bengio et al. 2013), in reverse mode only.
    """

    packed_weight: PackedMatrix

    def integer_rows(self, rows: Tensor, weight: PackedMatrix) -> tuple[Tensor, Tensor]:
        """The product in integers.

        Args:
            rows: float32 ``[n, in_features]``.
            weight: The module's weight.

        Returns:
            int32 sums ``[n, out_features]``, and the float32 scale of each input row ``[n, 1]``.
        """
        raise NotImplementedError  # no ABC: its metaclass would clash with that of a module's own class

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: ``[..., in_features]``, any float dtype.

        Returns:
            ``[..., out_features]``, same dtype; under autocast in its dtype, as an nn.Linear's output is.
        """
        weight: Any = self._modules["packed_weight"]  # nn.Module's __getattr__ would take as long as a small kernel
        if input.is_nested:
            return self._nested(input)
        if input.shape[-1] != weight.columns:
            raise InputError(f"input of shape {tuple(input.shape)}: this layer takes {weight.columns} input features")
        differentiated = torch.is_grad_enabled() and input.requires_grad
        rows = input if input.dim() == 2 else input.reshape(-1, weight.columns)
        sums, scale = self.integer_rows(_as_float32(rows.detach() if differentiated else rows), weight)
        # The weight's scale first: large inputs times the integers alone could overflow.
        output = _as_dtype(self._scaled(sums * _as_float32(weight.scale).t(), scale), _output_dtype(input))
        if input.dim() != 2:
            output = output.view(*input.shape[:-1], weight.rows)
        if differentiated:
            straight = functional.linear(input, weight.dequantized_rows(slice(None)).to(input.dtype)).to(output.dtype)
            output = output + (straight - straight.detach())
        return output

    def _became_packed(self) -> None:
        exact_method()  # tried now, and not in the first forward, which might be traced

    def _nested(self, input: Tensor) -> Tensor:
        if input.layout == torch.jagged:  # with the same offsets, or the result could not be added to the input
            return torch.nested.nested_tensor_from_jagged(self.forward(input.values()), input.offsets())  # type: ignore[attr-defined]  # stubs lack it
        return torch.nested.as_nested_tensor([self.forward(part) for part in input.unbind()])

    def _scaled(self, product: Tensor, scale: Tensor) -> Tensor:
        parameters = self._parameters
        bias: Any = parameters["bias"] if "bias" in parameters else getattr(self, "bias", None)
        return product.mul_(scale) if bias is None else torch.addcmul(_as_float32(bias), product, scale)


def _output_dtype(input: Tensor) -> torch.dtype:
    device = input.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype


def _as_float32(tensor: Tensor) -> Tensor:
    return _as_dtype(tensor, torch.float32)


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Even a conversion to the same dtype takes half as long as a small kernel.
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


class Int8Dynamic(IntegerCompute):
    """Each input row is quantized by its own largest magnitude, on each call."""

    _title = "Int8Dynamic"

    def integer_rows(self, rows: Tensor, weight: PackedMatrix) -> tuple[Tensor, Tensor]:
        codes, scale = quantize_rows(rows)
        return integer_product(codes, weight.qweight), scale


class InputQuantizer(ExactBuffers):
    """What a static layer knows of its inputs.

    Args:
        scale: ``[]``: the step of the inputs' codes, > 0; kept as float32.
        zero_point: ``[]``: the code of zero, -128..127; kept as int32.
        weight: The layer's weight, for the correction.

    Attributes:
        correction: int32 ``[out_features]``: zero_point times the sum of each row of weight codes, what a product of
            codes is too large by.
    """

    scale: Tensor
    zero_point: Tensor
    correction: Tensor
    kept_exact = ("scale",)

    def __init__(self, scale: Tensor, zero_point: Tensor, weight: PackedMatrix) -> None:
        super().__init__()
        device = weight.qweight.device
        self.register_buffer("scale", scale.to(device, torch.float32))
        self.register_buffer("zero_point", zero_point.to(device, torch.int32))
        self.register_buffer("correction", weight.qweight.sum(1, dtype=torch.int32) * self.zero_point)

    def extra_repr(self) -> str:
        if self.scale.is_meta:
            return "static int8 inputs"
        return f"scale={float(self.scale):.4g}, zero_point={int(self.zero_point)}"


class Int8Static(IntegerCompute):
    """All inputs are quantized with the range that calibration found; what lies outside of it is clipped."""

    _title = "Int8Static"
    packed_input: InputQuantizer

    def integer_rows(self, rows: Tensor, weight: PackedMatrix) -> tuple[Tensor, Tensor]:
        known: Any = self._modules["packed_input"]
        codes, scale = quantize_to_range(rows, known.scale, known.zero_point)
        return integer_product(codes, weight.qweight).sub_(known.correction), scale
