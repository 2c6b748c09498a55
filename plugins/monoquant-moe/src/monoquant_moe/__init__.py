"""Keep mixture-of-experts routers in float, and pack stacked experts along their inputs.

monoquant finds this module through its entry point.
"""

from __future__ import annotations

from collections.abc import Iterable

import monoquant

from monoquant_moe.experts import TransposedExpertsAdapter
from monoquant_moe.rules import RouterRule

__all__ = [
    "RouterRule",
    "TransposedExpertsAdapter",
    "monoquant_register_module_adapters",
    "monoquant_register_skip_rules",
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
