"""The language in which people name classes of modules, where they cannot give the classes."""

from __future__ import annotations

import difflib
import fnmatch
import re
import sys
from collections.abc import Iterable
from typing import Any

import attrs
from torch import nn

from monoquant.errors import ConfigError

_ENTRY = re.compile(r"([^\W\d]\w*\.)+[^\W\d]\w*|[\w*?\[\]!-]+")


def _check_entry(_instance: Any, _attribute: Any, entry: Any) -> None:
    if not (isinstance(entry, str) and _ENTRY.fullmatch(entry)):
        raise ConfigError(f"{entry!r} is no name of a class; give for example 'Embedding' or 'torch.nn.Embedding'")


@attrs.frozen
class ClassPattern:
    """One entry of a list of names of classes.

    Args:
        entry: ``"Embedding"``: a class or a base of it has this name, in which ``*``, ``?`` and ``[...]`` match as in
            file names. ``"torch.nn.Embedding"``: the module before the last dot has it, or offers it under this name.
    """

    entry: str = attrs.field(validator=_check_entry)

    def matches(self, kind: type) -> bool:
        """Whether a class is meant, itself or as a subclass.

        Args:
            kind: Of a module.
        """
        return any(self._is_name_of(base) for base in kind.__mro__ if base is not object)

    def _is_name_of(self, kind: type) -> bool:
        module, _, name = self.entry.rpartition(".")
        if not module:
            return fnmatch.fnmatchcase(kind.__name__, name)
        # torch.nn.Linear is in torch.nn.modules.linear; a module that offers a class was imported with it.
        offered = getattr(sys.modules.get(module), name, None)
        return offered is kind or f"{kind.__module__}.{kind.__qualname__}" == self.entry

    @property
    def with_article(self) -> str:
        """The entry as a sentence has it."""
        return f"{'an' if self.entry[0] in 'AEIOU' else 'a'} {self.entry}"


def nearest_classes(entry: str, kinds: Iterable[type], count: int = 3) -> list[str]:
    """Names of classes that look most like an entry that matched nothing.

    Args:
        entry: The entry.
        kinds: Classes that there are.
        count: How many to return at most; default 3.

    Returns:
        Names, most similar first; may be empty.
    """
    bases = {base for kind in kinds for base in kind.__mro__ if base not in (object, nn.Module)}
    names = sorted({base.__name__ for base in bases})
    return difflib.get_close_matches(entry.rpartition(".")[2], names, n=count, cutoff=0.5)
