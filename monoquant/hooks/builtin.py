"""monoquant's own checks, registered the way a plugin registers its own."""

from __future__ import annotations

from collections.abc import Iterable

from monoquant.checks import BUILT_IN_CHECKS, WarningCheck
from monoquant.hooks.specs import hookimpl
from monoquant.values import Scheme


@hookimpl
def monoquant_register_warning_checks(
    scheme: Scheme,  # noqa: ARG001 - the hook's signature
) -> Iterable[WarningCheck]:
    """Register the built-in checks."""
    return BUILT_IN_CHECKS
