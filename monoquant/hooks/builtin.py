"""monoquant's own checks and adapters, registered the way a plugin registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from monoquant.adapters.base import ModuleAdapter
from monoquant.adapters.choice import BUILT_IN_ADAPTERS
from monoquant.checks import BUILT_IN_CHECKS, WarningCheck
from monoquant.hooks.specs import hookimpl
from monoquant.values import AnyScheme


@hookimpl
def monoquant_register_warning_checks(
    scheme: AnyScheme,  # noqa: ARG001 - the hook's signature
) -> Iterable[WarningCheck]:
    """Register the built-in checks."""
    return BUILT_IN_CHECKS


@hookimpl
def monoquant_register_module_adapters() -> Iterable[ModuleAdapter]:
    """Register the built-in adapters."""
    return BUILT_IN_ADAPTERS
