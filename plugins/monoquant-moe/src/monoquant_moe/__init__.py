"""Keep mixture-of-experts routers in float; monoquant finds this module through its entry point."""

from __future__ import annotations

from collections.abc import Iterable

import monoquant

from monoquant_moe.rules import RouterRule

__all__ = ["RouterRule", "monoquant_register_skip_rules"]


@monoquant.hookimpl
def monoquant_register_skip_rules(
    scheme: monoquant.Scheme,  # noqa: ARG001 - the hook's signature; routers are kept whatever the scheme
) -> Iterable[monoquant.SkipRule]:
    """Register the router rule."""
    return [RouterRule()]
