"""For authors of rules, checks, passes, algorithms, observers and plugins: ``pip install monoquant[testing]``.

- Inherit: :class:`SkipRuleConformance`, :class:`WarningCheckConformance`, :class:`PassConformance`,
  :class:`AlgorithmConformance`, :class:`ObserverConformance`: all tests of a contract.
- Assert: :func:`assert_pass`: what one pass does to one model. :func:`assert_unchanged`, :class:`ModelState`.
- Draw: :mod:`monoquant.testing.strategies`: hypothesis strategies.
- Build: :mod:`monoquant.testing.zoo`: small modules of every kind that monoquant packs, and some that it refuses.
- Ask for: :mod:`monoquant.testing.fixtures`, if a test module or conftest names it.

Only suites, strategies and fixtures need the extra; nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from monoquant.testing.assertions import assert_pass
    from monoquant.testing.conformance import (
        AlgorithmConformance,
        ObserverConformance,
        PassConformance,
        SkipRuleConformance,
        WarningCheckConformance,
    )
    from monoquant.testing.unchanged import ModelState, assert_unchanged

__all__ = [
    "AlgorithmConformance",
    "ModelState",
    "ObserverConformance",
    "PassConformance",
    "SkipRuleConformance",
    "WarningCheckConformance",
    "assert_pass",
    "assert_unchanged",
]

_HOMES: Final = {"assert_pass": "assertions", "ModelState": "unchanged", "assert_unchanged": "unchanged"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOMES.get(name, 'conformance')}"
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ModuleNotFoundError(
            f"{name} needs hypothesis: pip install 'monoquant[testing]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
