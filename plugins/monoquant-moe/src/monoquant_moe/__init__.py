"""Keep mixture-of-experts routers in float, pack stacked experts along their inputs, and warn of those hardly seen.

monoquant finds this module through its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable

import monoquant

from monoquant_moe.checks import ExpertTokensCheck
from monoquant_moe.experts import TransposedExpertsAdapter
from monoquant_moe.rules import RouterRule

__all__ = [
    "ExpertTokensCheck",
    "RouterRule",
    "TransposedExpertsAdapter",
    "monoquant_register_module_adapters",
    "monoquant_register_skip_rules",
    "monoquant_register_warning_checks",
]


@monoquant.hookimpl
def monoquant_register_skip_rules(
    scheme: monoquant.Scheme | monoquant.HalfScheme,  # noqa: ARG001 - the hook's signature; routers are kept whatever the scheme
) -> Iterable[monoquant.SkipRule]:
    """Register the router rule."""
    return [RouterRule()]


@monoquant.hookimpl
def monoquant_register_module_adapters() -> Iterable[monoquant.ModuleAdapter]:
    """Register the adapter for stacked experts."""
    return [TransposedExpertsAdapter()]


@monoquant.hookimpl
def monoquant_register_warning_checks(
    scheme: monoquant.Scheme | monoquant.HalfScheme,  # noqa: ARG001 - the hook's signature; where nothing is fitted, nothing is said
) -> Iterable[monoquant.WarningCheck]:
    """Register the check of experts that saw too few tokens."""
    return [ExpertTokensCheck()]
