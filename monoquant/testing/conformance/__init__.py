"""Suites of tests that rules, checks, passes, algorithms and observers must pass; inherit from the one you need."""

from monoquant.testing.conformance.algorithm import AlgorithmConformance
from monoquant.testing.conformance.base import Conformance
from monoquant.testing.conformance.observer import ObserverConformance
from monoquant.testing.conformance.pass_ import PassConformance
from monoquant.testing.conformance.skip_rule import SkipRuleConformance
from monoquant.testing.conformance.warning_check import WarningCheckConformance

__all__ = [
    "AlgorithmConformance",
    "Conformance",
    "ObserverConformance",
    "PassConformance",
    "SkipRuleConformance",
    "WarningCheckConformance",
]
