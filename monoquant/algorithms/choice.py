"""Algorithms by name."""

from __future__ import annotations

from typing import Any

from monoquant.algorithms.awq import Awq
from monoquant.algorithms.base import WeightAlgorithm
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.errors import ConfigError

ALGORITHMS: tuple[WeightAlgorithm, ...] = (RoundToNearest(), ClipSearch(), Gptq(), Awq())


def algorithm_named(given: Any) -> WeightAlgorithm:
    """The algorithm that a caller means.

    Args:
        given: A name, or an algorithm.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(given, WeightAlgorithm):
        return given
    found = {one.name: one for one in ALGORITHMS}
    if not isinstance(given, str) or given not in found:
        allowed = ", ".join(map(repr, found))
        raise ConfigError(f"algorithm={given!r}: give one of {allowed}, or an instance of a WeightAlgorithm")
    return found[given]
