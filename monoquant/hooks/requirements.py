"""Whether this monoquant is one that a distribution asks for; pip sees to that at first, and nobody does later."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

_REQUIREMENT = re.compile(r"^\s*monoquant\s*(?:\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?$", re.IGNORECASE)
_CLAUSE = re.compile(r"^(>=|<=|==|!=|~=|>|<)\s*(\d+(?:\.\d+)*)(\.\*)?$")


def unmet_requirement(requirements: Iterable[str] | None, version: str) -> str | None:
    """The clause on monoquant that a version does not meet.

    Only released versions are compared, number by number; what is beyond that is left to pip.

    Args:
        requirements: ``Requires-Dist`` lines of a distribution; None for none.
        version: Of this monoquant.

    Returns:
        For example ``">=2,<3"``; None if all is well.
    """
    release = _numbers(re.match(r"[\d.]*\d", version))
    for line in requirements or ():
        found = _REQUIREMENT.match(line)
        if found is None or "extra" in (found[2] or ""):
            continue
        clauses = [clause.strip() for clause in found[1].split(",") if clause.strip()]
        if not all(_meets(release, clause) for clause in clauses):
            return ",".join(clauses)
    return None


def _numbers(found: re.Match[str] | None) -> tuple[int, ...]:
    return () if found is None else tuple(map(int, found[0].split(".")))


def _meets(release: tuple[int, ...], clause: str) -> bool:
    found = _CLAUSE.match(clause)
    if found is None:
        return True
    operator, wanted = found[1], tuple(map(int, found[2].split(".")))
    pairs = list(itertools.zip_longest(release, wanted, fillvalue=0))
    own, other = tuple(one for one, _ in pairs), tuple(two for _, two in pairs)
    prefix = release[: len(wanted)] == wanted
    return {
        ">=": own >= other,
        "<=": own <= other,
        ">": own > other,
        "<": own < other,
        "==": prefix if found[3] else own == other,
        "!=": not prefix if found[3] else own != other,
        "~=": own >= other and release[: len(wanted) - 1] == wanted[:-1],
    }[operator]
