"""Linear layers with packed weights, constructible like nn.Linear."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from monoquant.modules.integer_compute import InputQuantizer, Int8Dynamic, Int8Static
from monoquant.modules.kernel_compute import KernelCompute
from monoquant.modules.packed_matrix import PackedMatrix
from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight
from monoquant.modules.storage import empty_weight
from monoquant.numerics.matrix_form import MatrixForm
from monoquant.values import INT8_SCHEME, AnyScheme, HalfScheme, Scheme

if TYPE_CHECKING:
    from torch.nn import Parameter


class PackedLinear(PackedModule, nn.Linear):
    """``y = x @ weight.T + bias`` with a packed weight.

    Takes what ``nn.Linear`` takes: inputs ``[..., in_features]`` in the layer's own dtype; and is one to
    ``isinstance``, so that code which asks goes on treating it as a Linear. The weight takes no gradient; input and
    bias do.

    Args:
        in_features: Size of each input row.
        out_features: Size of each output row.
        bias: Whether a bias is added; default True.
        scheme: How the weight is represented; default: see the subclass.
        device: Where the tensors live.
        dtype: dtype of weight and bias as seen from outside; default: torch's default dtype.

    Attributes:
        packed_weight: The canonical storage, shared by layers whose weights are tied.
        bias: ``[out_features]`` or None.
    """

    _default_scheme: ClassVar[AnyScheme] = Scheme()
    packed_weight: PackedWeight
    bias: Parameter | None  # type: ignore[assignment]  # Linear leaves out that it may be None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scheme: AnyScheme | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not Linear's own, which would make a float weight
        dtype = dtype or torch.get_default_dtype()
        self.in_features, self.out_features = in_features, out_features
        self._add_storage(self._default_scheme if scheme is None else scheme, device, dtype)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None

    def _add_storage(self, scheme: AnyScheme, device: torch.device | str | None, dtype: torch.dtype) -> None:
        form = MatrixForm.rows_first((self.out_features, self.in_features))
        self.packed_weight = empty_weight(form, scheme, dtype, device or torch.get_default_device())

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


class Int4Linear(KernelCompute, PackedLinear):
    """A PackedLinear of 4-bit codes; by default asymmetric groups of 128 with float16 scales."""

    _title = "Int4"
    packed_weight: PackedMatrix


class Int8Linear(KernelCompute, PackedLinear):
    """A PackedLinear of 8-bit codes; by default symmetric with one float32 scale per output channel."""

    _title = "Int8"
    _default_scheme = INT8_SCHEME
    packed_weight: PackedMatrix


class HalfLinear(PackedLinear):
    """A PackedLinear stored in 16 bits of floating point; by default float16."""

    _title = "Half"
    _default_scheme = HalfScheme(torch.float16)


class Int8DynamicLinear(Int8Dynamic, Int8Linear):
    """An Int8Linear that quantizes each input row and multiplies integers, which is faster than float."""

    _title = Int8Dynamic._title
    _default_scheme = attrs.evolve(INT8_SCHEME, activations="dynamic")
    packed_weight: PackedMatrix


class Int8StaticLinear(Int8Static, Int8Linear):
    """An Int8Linear that quantizes inputs to a known range and multiplies integers.

    A new one takes inputs from -1 to 1, until it is loaded.
    """

    _title = Int8Static._title
    _default_scheme = attrs.evolve(INT8_SCHEME, activations="static")
    packed_weight: PackedMatrix

    def _add_storage(self, scheme: AnyScheme, device: torch.device | str | None, dtype: torch.dtype) -> None:
        super()._add_storage(scheme, device, dtype)
        self.packed_input = InputQuantizer(torch.tensor(1 / 128), torch.tensor(0), self.packed_weight)
