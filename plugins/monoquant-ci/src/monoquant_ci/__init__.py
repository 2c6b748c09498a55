"""Quantization in a build pipeline: a gate against the last release, GitHub annotations and JUnit XML.

monoquant finds this module through its entry point. The environment says what to compare with; :class:`Gate` does so
in code.
"""

from __future__ import annotations

from collections.abc import Iterable

import monoquant

from monoquant_ci.gate import Gate, check_of_environment
from monoquant_ci.github import GitHubReporter
from monoquant_ci.junit import JUnitReporter
from monoquant_ci.version import VERSION

__version__ = VERSION

__all__ = [
    "Gate",
    "GitHubReporter",
    "JUnitReporter",
    "monoquant_register_reporters",
    "monoquant_register_warning_checks",
]


@monoquant.hookimpl
def monoquant_register_warning_checks() -> Iterable[monoquant.WarningCheck]:
    """Register the gate that the environment describes; without a baseline, a check that says so."""
    return [check_of_environment()]


@monoquant.hookimpl
def monoquant_register_reporters() -> Iterable[monoquant.Reporter]:
    """Register ``github`` and ``junit``."""
    return [GitHubReporter(), JUnitReporter()]
