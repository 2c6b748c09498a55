"""What the code of a module class says about its parameters, read without running it."""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

_READS_OF_ALL = frozenset(("parameters", "named_parameters", "_parameters", "state_dict"))
"""Ways to read parameters past their names, by which a packed one would be missed."""


def names_read_by_forward(kind: type) -> set[str]:
    """Names that the forward of a class reads as attributes of something, and the methods and properties it uses.

    Args:
        kind: A module class.

    Returns:
        The names; none if the forward also reads parameters past their names, so that no name can be trusted.
    """
    found: set[str] = set()
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        versions = (_function(vars(one).get(name)) for one in kind.__mro__)  # an overriding one may call the others
        codes = (function.__code__ for function in versions if function is not None)
        new = {read for code in codes for read in _names(code)} - found
        found |= new
        waiting += new
    return found if found.isdisjoint(_READS_OF_ALL) else set()


def writer_of(kind: type, names: Collection[str]) -> str | None:
    """A method of a class that replaces the data of a parameter, as LoRA layers do when they merge.

    Args:
        kind: A module class.
        names: Names of parameters.

    Returns:
        The method's name; None if there is none. What initializes parameters does not count, nor do torch's classes.
    """
    own = [one for one in kind.__mro__ if not one.__module__.startswith("torch.") and one is not object]
    for name, value in ((name, value) for one in own for name, value in vars(one).items()):
        function = _function(value)
        if function is None or "init" in name or name.startswith("reset"):
            continue
        stores = any(step.opname == "STORE_ATTR" and step.argval == "data" for step in dis.get_instructions(function))
        if stores and not set(names).isdisjoint(function.__code__.co_names):
            return name
    return None


def _function(attribute: Any) -> types.FunctionType | None:
    function = getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute)
    function = inspect.unwrap(function) if callable(function) else function
    own = isinstance(function, types.FunctionType) and function.__module__ != nn.Module.__module__
    return function if own else None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
