"""RNN, LSTM and GRU with packed weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from monoquant.modules.packed_module import PackedModule
from monoquant.modules.packed_weight import PackedWeight


class PackedRecurrent(PackedModule):
    """Mixin of nn.RNNBase: the list of weights that torch's kernels take is dequantized on each call.

    nn.RNNBase keeps that list as an attribute and refreshes it when parameters change; here it is computed.
    """

    _flat_weights_names: list[str]
    input_size: int

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: Any) -> None:
        """Nothing is kept: nn.RNNBase assigns the list when it is copied or moved."""

    def become_float(self, parameter: Callable[[PackedWeight], nn.Parameter]) -> None:
        super().become_float(parameter)
        self._init_flat_weights()  # nn.RNNBase's own again

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """As nn.RNNBase does, without dequantizing a weight to learn its dtype."""
        dtype = next(iter(self.packed_weights().values())).dtype
        stand_in: Any = SimpleNamespace(_flat_weights=[torch.empty(0, dtype=dtype)], input_size=self.input_size)
        nn.RNNBase.check_input(stand_in, input, batch_sizes)

    def flatten_parameters(self) -> None:
        """Nothing to do: cuDNN's single block of weights cannot be kept, it is made anew on each call."""

    def _became_packed(self) -> None:
        vars(self).pop("_flat_weights", None)
        self._flat_weight_refs: list[Any] = []

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs = []

    def _weights_have_changed(self) -> bool:
        return False
