"""A Linear layer whose weight is packed INT4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from monoquant.modules.packed_int4 import PackedInt4
from monoquant.values import Scheme

if TYPE_CHECKING:
    from torch.nn import Parameter


class Int4Linear(nn.Linear):
    """``y = x @ weight.T + bias`` with the weight stored as 4-bit codes.

    Takes what ``nn.Linear`` takes: inputs ``[..., in_features]`` in the layer's own dtype; and is one to
    ``isinstance``, so that code which asks goes on treating it as a Linear. The weight is dequantized on each call and
    takes no gradient; input and bias do.

    Args:
        in_features: Size of each input row.
        out_features: Size of each output row.
        bias: Whether a bias is added; default True.
        scheme: How the weight is represented; default: INT4, asymmetric groups of 128, float16 scales.
        device: Where the tensors live.
        dtype: dtype of weight and bias as seen from outside; default: torch's default dtype.

    Attributes:
        packed_weight: The canonical storage, shared by layers whose weights are tied.
        bias: ``[out_features]`` or None.
    """

    packed_weight: PackedInt4
    bias: Parameter | None  # type: ignore[assignment]  # Linear leaves out that it may be None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scheme: Scheme | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not Linear's own, which would make a float weight
        dtype = dtype or torch.get_default_dtype()
        self.in_features, self.out_features = in_features, out_features
        self.packed_weight = PackedInt4(out_features, in_features, scheme or Scheme(), dtype=dtype, device=device)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # Linear declares an attribute; this is one to read
        """The dequantized weight ``[out_features, in_features]``, computed on each access."""
        return self.packed_weight.dequantize()

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            input: ``[..., in_features]`` in the layer's dtype.

        Returns:
            ``[..., out_features]``, same dtype.
        """
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
