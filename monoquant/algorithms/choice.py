"""Algorithms by name."""

from __future__ import annotations

from typing import Any

import attrs

from monoquant.algorithms.awq import Awq
from monoquant.algorithms.base import Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.clip_search import ClipSearch
from monoquant.algorithms.gptq import Gptq
from monoquant.algorithms.round_to_nearest import RoundToNearest
from monoquant.errors import ConfigError, PassError

ALGORITHMS: tuple[WeightAlgorithm, ...] = (RoundToNearest(), ClipSearch(), Gptq(), Awq())


@attrs.frozen
class NamedAlgorithm(WeightAlgorithm):
    """Stands for an algorithm that a plugin may bring, until a Quantizer looks its name up.

    Args:
        name: What the plugin calls it.
    """

    name: str  # type: ignore[misc]  # here it is what an instance is about

    def solve(self, problem: WeightProblem) -> Solution:
        raise PassError(
            f"algorithm {self.name!r} is only a name so far: run its pass in a Quantizer, which looks it up"
        )


def algorithm_named(given: Any) -> WeightAlgorithm:
    """The algorithm that a caller means.

    Args:
        given: A name, or an algorithm.

    Returns:
        The algorithm; for a name that is not built in, one that only stands for it.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(given, WeightAlgorithm):
        return given
    found = {one.name: one for one in ALGORITHMS}
    if not isinstance(given, str) or not given:
        allowed = ", ".join(map(repr, found))
        raise ConfigError(f"algorithm={given!r}: give one of {allowed}, or an instance of a WeightAlgorithm")
    return found.get(given) or NamedAlgorithm(given)
