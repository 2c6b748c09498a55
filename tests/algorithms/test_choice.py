"""Algorithms by name."""

from __future__ import annotations

from typing import Any

import pytest

import monoquant as mq
from monoquant.algorithms.base import Solution, WeightAlgorithm, WeightProblem
from monoquant.algorithms.choice import ALGORITHMS, algorithm_named
from monoquant.algorithms.gptq import Gptq


@pytest.mark.parametrize("name", ["round_to_nearest", "clip_search", "gptq", "awq"])
def test_names_are_found(name: str) -> None:
    """Each name gives the algorithm that reports call so."""
    assert algorithm_named(name).name == name
    assert [one.name for one in ALGORITHMS].count(name) == 1


def test_an_algorithm_is_taken_as_it_is() -> None:
    """One's own, and one of ours with settings."""

    class Own(WeightAlgorithm):
        name = "own"

        def solve(self, problem: WeightProblem) -> Solution:
            raise NotImplementedError

    own, careful = Own(), Gptq(damping=0.1)
    assert algorithm_named(own) is own
    assert algorithm_named(careful) is careful


@pytest.mark.parametrize("given", ["GPTQ", "awk", "", "auto", 4, None, Gptq, ["gptq"]])
def test_anything_else_is_refused(given: Any) -> None:
    """The error names what was given, and what would be right."""
    with pytest.raises(
        mq.ConfigError, match=r"algorithm=.*'round_to_nearest', 'clip_search', 'gptq', 'awq', or an instance"
    ):
        algorithm_named(given)
