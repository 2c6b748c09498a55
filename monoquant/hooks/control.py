"""Which plugins take part, and whether their calls are told: what the environment and the caller say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from monoquant.errors import ConfigError

SWITCH, BLOCK, TRACE = "MONOQUANT_PLUGINS", "MONOQUANT_BLOCK_PLUGINS", "MONOQUANT_TRACE_PLUGINS"
_ON, _OFF = ("1", "on", "true", "yes"), ("0", "off", "false", "no")
BLOCKING = "no:"

Trace = Callable[[str], object]


def installed_take_part() -> bool:
    """What ``MONOQUANT_PLUGINS`` says of installed plugins; they take part where it is not set.

    Raises:
        ConfigError: When it says neither on nor off.
    """
    return _switch(SWITCH, default=True)


def blocked_names() -> list[str]:
    """The names in ``MONOQUANT_BLOCK_PLUGINS``, which commas separate."""
    return [name.strip() for name in os.environ.get(BLOCK, "").split(",") if name.strip()]


def trace_of(given: Any) -> Trace | None:
    """Who is told of calls of hooks.

    Args:
        given: A function of one text; True for stderr; False for nobody; None for what ``MONOQUANT_TRACE_PLUGINS``
            says.

    Raises:
        ConfigError: For anything else.
    """
    if given is None:
        given = _switch(TRACE, default=False)
    if isinstance(given, bool):
        return _tell_stderr if given else None
    if not callable(given):
        raise ConfigError(f"trace={given!r}: give True, False or a function that takes a text")
    trace: Trace = given
    return trace


def listed(option: str, plugins: Any) -> list[Any]:
    """A list of plugins, or of names.

    Args:
        option: What the caller calls it, for the error.
        plugins: A list, or one text.

    Raises:
        ConfigError: For anything else.
    """
    if isinstance(plugins, (str, os.PathLike)):
        return [plugins]
    if not isinstance(plugins, Iterable) or isinstance(plugins, type):
        given = "True, False, a PluginManager, or a list" if option == "plugins" else "a list"
        raise ConfigError(f"{option}={plugins!r}: give {given} of .py files, modules, objects and 'no:NAME'")
    return list(plugins)


def shown(value: Any) -> str:
    """An argument or an answer of a hook, in a trace.

    Args:
        value: Anything.
    """
    if value is None or isinstance(value, str):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(repr, value))}]"
    return type(value).__name__


def _tell_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _switch(name: str, *, default: bool) -> bool:
    text = os.environ.get(name, "").strip().lower()
    if not text:
        return default
    if text not in (*_ON, *_OFF):
        raise ConfigError(f"{name}={text!r}: set it to on or off")
    return text in _ON
