"""What the packing passes with integer codes share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monoquant.errors import InputError, quoted
from monoquant.values import Scheme


def refuse_large_scales(ranges: Sequence[tuple[str, float]], scheme: Scheme) -> None:
    """Refuse weights whose scales would overflow their dtype; all layers at once.

    Args:
        ranges: Layer names, each with the range of one of the layer's weights, finite.
        scheme: Bits and scale dtype.

    Raises:
        InputError: Naming the layers and a dtype that does.
    """
    limit = torch.finfo(scheme.scale_dtype).max
    found = [layer for layer, width in ranges if width / scheme.max_code > limit]
    if found:
        layers = list(dict.fromkeys(found))
        remedy = "use scale_dtype=torch.float32 or skip them"
        raise InputError(
            f"weights too large for {scheme.scale_dtype} scales: {quoted(layers)}; {remedy}", layers=layers
        )
