"""What the code of a module class says about its parameters, read without running it."""

from __future__ import annotations

import dis
import inspect
import itertools
import types
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

PAST_NAMES = frozenset(
    (
        *("parameters", "named_parameters", "_parameters", "state_dict", "__dict__"),
        *("buffers", "named_buffers", "children", "named_children", "modules", "named_modules", "_modules"),
    )
)
"""Ways to reach what a module holds past its name, which would miss packed parameters or meet their storage."""

_LOADS = ("LOAD_ATTR", "LOAD_METHOD")
_HARMLESS = ("requires_grad_",)


def names_read_by_forward(kind: type) -> set[str]:
    """Names that the forward of a class reads from ``self``, and that the methods and properties it uses read.

    Args:
        kind: A module class.

    Returns:
        Names of attributes; some of PAST_NAMES among them where it reads past names.
    """
    found: set[str] = set()
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        versions = (_function(vars(one).get(name)) for one in kind.__mro__)  # an overriding one may call the others
        codes = (function.__code__ for function in versions if function is not None)
        new = {read for code in codes for read in _read_from_self(code, code.co_varnames[:1])} - found
        found |= new
        waiting += new
    return found


def writer_of(kind: type, names: Collection[str], child: str | None = None) -> str | None:
    """A method of a class that writes to the data of a parameter, as LoRA layers do when they merge.

    Args:
        kind: A module class.
        names: Names of parameters.
        child: Name of the submodule whose parameters they are; default: any object's.

    Returns:
        The method's name; None if there is none. What initializes parameters does not count, nor do torch's classes.
    """
    own = [one for one in kind.__mro__ if not one.__module__.startswith("torch.") and one is not object]
    for name, value in ((name, value) for one in own for name, value in vars(one).items()):
        function = _function(value)
        if function is None or "init" in name or name.startswith("reset"):
            continue
        steps = list(dis.get_instructions(function))
        loads = [at for at, step in enumerate(steps) if step.opname in _LOADS and step.argval in names]
        positions = [at for at in loads if child is None or (at and steps[at - 1].argval == child)]
        if any(_is_written(steps[at + 1 :]) for at in positions):
            return name
    return None


def _is_written(steps: Sequence[dis.Instruction]) -> bool:
    """Whether the tensor on top of the stack is written to: its data replaced, an element set, an in-place method."""
    augmented = bool(steps) and steps[0].opname == "COPY"
    rest = [step for step in steps if step.opname not in ("COPY", "PRECALL", "CACHE")]
    if rest and rest[0].argval == "data":
        if rest[0].opname == "STORE_ATTR" or augmented:
            return True
        rest = rest[1:]
    if not rest:
        return False
    method = str(rest[0].argval)
    if rest[0].opname in _LOADS:
        return method.endswith("_") and not method.startswith("_") and method not in _HARMLESS
    indexing = (step.opname for step in rest[:3])
    return next((name for name in indexing if not name.startswith("LOAD_")), "") == "STORE_SUBSCR"


def _function(attribute: Any) -> types.FunctionType | None:
    inner = (getattr(attribute, name, None) for name in ("fget", "__func__", "func"))
    function = next((one for one in inner if one is not None), attribute)
    function = inspect.unwrap(function) if callable(function) else function
    own = isinstance(function, types.FunctionType) and function.__module__ != nn.Module.__module__
    return function if own else None


def _read_from_self(code: types.CodeType, self_name: Sequence[str]) -> Iterator[str]:
    steps = list(dis.get_instructions(code))
    for before, step in itertools.pairwise(steps):
        if step.opname in _LOADS and "LOAD" in before.opname and _last(before.argval) in self_name:
            yield step.argval
    if "super" in code.co_names:
        yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _read_from_self(constant, self_name)


def _last(argument: Any) -> Any:
    # Since Python 3.13 one instruction may load two variables.
    return argument[-1] if isinstance(argument, tuple) and argument else argument
