"""The language in which people name layers: dotted components, globs, regular expressions."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable
from typing import Any

import attrs

from monoquant.errors import ConfigError

_REGEX_MARK = "re:"
_GLOB_CHARACTERS = frozenset("*?[")


def _check_entry(_instance: Any, _attribute: Any, entry: Any) -> None:
    if not isinstance(entry, str):
        raise ConfigError(f"a layer name must be a string, not {entry!r}; give for example 'lm_head' or '*.gate'")
    if entry.startswith(_REGEX_MARK):
        try:
            re.compile(entry.removeprefix(_REGEX_MARK))
        except re.error as error:
            raise ConfigError(f"layer name {entry!r} is not a regular expression: {error}") from error
    elif not all(entry.split(".")):
        raise ConfigError(f"layer name {entry!r} has an empty component; give for example 'lm_head' or 'layers.1'")


@attrs.frozen
class NamePattern:
    """One entry of a list of layer names.

    Args:
        entry: ``"lm_head"`` or ``"layers.1"``: whole dotted components at any depth, covering what they contain; an
            entry of numbers only, as in nn.Sequential, counts from the root. ``*``, ``?`` and ``[...]`` match within
            one component. ``"re:..."`` must match the full name.
    """

    entry: str = attrs.field(validator=_check_entry)

    def matches(self, name: str) -> bool:
        """Whether a dotted layer name is covered by the entry."""
        if self.entry.startswith(_REGEX_MARK):
            return re.fullmatch(self.entry.removeprefix(_REGEX_MARK), name) is not None
        wanted, given = self.entry.split("."), name.split(".")
        if all(part.isdigit() for part in wanted):
            return given[: len(wanted)] == wanted
        starts = range(len(given) - len(wanted) + 1)
        return any(all(map(_component_matches, given[start:], wanted)) for start in starts)


def _component_matches(component: str, wanted: str) -> bool:
    if _GLOB_CHARACTERS.isdisjoint(wanted):
        return component == wanted
    return fnmatch.fnmatchcase(component, wanted)


def nearest_names(entry: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Real names that look most like an entry that matched nothing.

    Args:
        entry: The entry.
        names: Dotted names that exist.
        count: How many to return at most; default 3.

    Returns:
        Full names, single components and tails of names, most similar first; may be empty.
    """
    candidates: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        candidates.update(dict.fromkeys([*parts, *(".".join(parts[start:]) for start in range(len(parts)))]))
    words = [candidate for candidate in candidates if candidate and not candidate.isdigit()]
    return difflib.get_close_matches(entry.removeprefix(_REGEX_MARK), words, n=count, cutoff=0.5)
