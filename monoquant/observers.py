"""Observers: what is remembered of the inputs that a layer sees during calibration."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from monoquant.errors import ConfigError


def _check_rows(_instance: Any, _attribute: Any, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"sample_rows={value!r}: give a whole number of input rows >= 1")


@attrs.frozen
class InputSample:
    """A request to remember a uniform sample of a layer's input rows.

    Args:
        rows: Most rows to keep per layer, >= 1; the memory is ``rows * in_features`` elements per layer.
    """

    rows: int = attrs.field(validator=_check_rows)

    def observer(self) -> RowSampler:
        """A fresh observer that fulfils the request for one layer."""
        return RowSampler(self.rows)


class RowSampler:
    """Keeps a uniform random sample of all rows it is shown, of bounded size.

    Every row draws a key; the rows with the smallest keys are kept (reservoir sampling with random tags, Vitter 1985).

    Args:
        rows: Most rows to keep.
    """

    def __init__(self, rows: int) -> None:
        self._limit = rows
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._keys = torch.empty(0, device="cpu", dtype=torch.float32)
        self._rows: Tensor | None = None

    def update(self, inputs: Tensor) -> None:
        """Show the observer one call's inputs.

        Args:
            inputs: ``[..., in_features]``; copied as far as kept.
        """
        inputs = inputs.detach().reshape(-1, inputs.shape[-1])
        keys = torch.rand(inputs.shape[0], generator=self._generator, device="cpu", dtype=torch.float32)
        candidates = torch.topk(keys, min(self._limit, len(keys)), largest=False)
        rows = inputs[candidates.indices.to(inputs.device)]
        if self._rows is not None:
            rows = torch.cat([self._rows, rows.to(self._rows)])
        keys = torch.cat([self._keys, candidates.values])
        kept = torch.topk(keys, min(self._limit, len(keys)), largest=False).indices
        self._keys, self._rows = keys[kept], rows[kept.to(rows.device)]

    def result(self) -> Tensor | None:
        """The sample.

        Returns:
            ``[n, in_features]`` with ``n <= rows`` in the inputs' dtype, or None if nothing was seen.
        """
        return self._rows
