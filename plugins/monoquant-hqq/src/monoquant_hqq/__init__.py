"""Half-quadratic quantization: codes that no data is needed for, fitted to most weights rather than to the largest.

monoquant finds this module through its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable

import monoquant

from monoquant_hqq.algorithm import Hqq

__all__ = ["Hqq", "monoquant_register_algorithms"]


@monoquant.hookimpl
def monoquant_register_algorithms() -> Iterable[monoquant.WeightAlgorithm]:
    """Register the algorithm with its default settings."""
    return [Hqq()]
