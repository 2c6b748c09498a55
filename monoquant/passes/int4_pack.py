"""Pack weights to group-wise INT4 by round-to-nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch

from monoquant.passes.code_pack import refuse_large_scales
from monoquant.passes.pack import PackPass
from monoquant.values import Scheme


@attrs.frozen
class Int4PackPass(PackPass):
    """Turn the weights of every remaining layer into 4-bit codes with a scale per group of input features.

    Args:
        group_size: Input features per group, >= 1; default 128. Ragged last groups are fine. None: a whole row.
        symmetric: False (default): codes 0..15 with a zero_point per group. True: codes -8..7.
        scale_dtype: torch.float16 (default), torch.bfloat16 or torch.float32.
    """

    single: ClassVar[bool] = True

    group_size: int | None = 128
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16

    def __attrs_post_init__(self) -> None:
        _ = self.scheme  # refuses bad settings now rather than in the run

    @property
    def scheme(self) -> Scheme:
        return Scheme(4, self.group_size, self.symmetric, self.scale_dtype)

    def refuse_extremes(self, ranges: Sequence[tuple[str, float]]) -> None:
        super().refuse_extremes(ranges)
        refuse_large_scales(ranges, self.scheme)
