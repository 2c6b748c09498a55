"""Buffers that follow a model to another device, but not to another dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

_SAME_WIDTH_INTEGER = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


class ExactBuffers(nn.Module):
    """Base of modules with float buffers that ``.to(dtype)`` must not convert, because a cast would change them.

    Attributes:
        kept_exact: Names of those buffers.
    """

    kept_exact: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # They travel as integers, which are moved and never converted.
        dtypes = {name: self._buffers[name].dtype for name in self.kept_exact}  # type: ignore[union-attr]
        self._view_buffers({name: _SAME_WIDTH_INTEGER[dtype] for name, dtype in dtypes.items()})
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._view_buffers(dtypes)
        return self

    def _view_buffers(self, dtypes: Mapping[str, torch.dtype]) -> None:
        for name, dtype in dtypes.items():
            self._buffers[name] = self._buffers[name].view(dtype)  # type: ignore[union-attr]
