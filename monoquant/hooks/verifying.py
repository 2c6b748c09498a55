"""Holding a plugin to the hooks before it is registered: everything that pluggy would pass over in silence."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from monoquant.hooks import specs

_MARK = f"{specs.PROJECT}_impl"
_ORDERS = ("tryfirst", "trylast")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def problems_of(plugin: object) -> list[str]:
    """Everything that is wrong with a plugin, each with what to do.

    Args:
        plugin: A module, or an object with methods.
    """
    if isinstance(plugin, type):
        return [f"{plugin.__name__} is a class; register a module or an instance"]
    problems, hooks = [], 0
    for name, member in _members(plugin):
        if isinstance(member, _Unreadable):
            problems.append(f"reading its attribute {name} raised {member.reason}; make it readable, or rename it")
        elif (options := _options(member)) is not None:
            hooks += 1
            problems += _problems_of_hook(options.get("specname") or name, member, options)
        elif name.startswith(specs.PREFIX) and inspect.isroutine(member):
            problems.append(f"{name} lacks the marker; put @monoquant.hookimpl above it")
        elif name in specs.hook_names():
            problems.append(f"{name} is a {type(member).__name__}; make it a function that returns that")
    if not hooks and not problems:
        problems.append(f"implements no hook; the hooks are {', '.join(specs.hook_names())}")
    return problems


def hooks_of(plugin: object) -> dict[str, Any]:
    """Implementations of a sound plugin by hook; those that only newer hosts know are left out.

    Args:
        plugin: What :func:`problems_of` found nothing wrong with.
    """
    return {hook: member for hook, member in _marked(plugin) if hook in specs.hook_names()}


def unknown_hooks_of(plugin: object) -> list[str]:
    """Optional hooks that a sound plugin implements and only newer hosts know.

    Args:
        plugin: What :func:`problems_of` found nothing wrong with.
    """
    return [hook for hook, _ in _marked(plugin) if hook not in specs.hook_names()]


def _marked(plugin: object) -> list[tuple[str, Any]]:
    found = ((name, member, _options(member)) for name, member in _members(plugin))
    marked = {options.get("specname") or name: member for name, member, options in found if options is not None}
    return sorted(marked.items())


class _Unreadable:
    def __init__(self, error: Exception) -> None:
        self.reason = f"{type(error).__name__}: {error}"


def _members(plugin: object) -> Iterator[tuple[str, Any]]:
    for name in dir(plugin):
        try:
            yield name, getattr(plugin, name)
        except Exception as error:  # a property may raise anything
            if name.startswith(specs.PREFIX):
                yield name, _Unreadable(error)


def _options(member: Any) -> Mapping[str, Any] | None:
    found = getattr(member, _MARK, None) if inspect.isroutine(member) else None
    return found if isinstance(found, dict) else None


def _problems_of_hook(hook: str, function: Any, options: Mapping[str, Any]) -> Iterator[str]:
    if hook not in specs.hook_names():
        if not options.get("optionalhook"):
            yield _unknown(hook)
        return
    if options.get("wrapper") or options.get("hookwrapper"):
        yield f"{hook} is a wrapper; plugins are asked one by one, so return values of your own instead"
        return
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield f"{hook} is async; make it a plain function"
    yield from (f"{hook} has {order}, which changes nothing; leave it out" for order in _ORDERS if options.get(order))
    yield from _problems_of_arguments(hook, function)


def _unknown(hook: str) -> str:
    names = specs.hook_names()
    near = difflib.get_close_matches(hook, names, 1, cutoff=0.9)
    guess = f"did you mean {near[0]!r}? If not, the plugin" if near else "the plugin"
    return (
        f"implements {hook!r}, which monoquant {version('monoquant')} does not have; {guess} may be newer than this "
        "monoquant: upgrade monoquant, or mark the function with @monoquant.hookimpl(optionalhook=True); the hooks are "
        f"{', '.join(names)}"
    )


def _problems_of_arguments(hook: str, function: Any) -> Iterator[str]:
    passed = specs.arguments_of(hook)
    told = ", ".join(passed) or "nothing"
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in _VARIADIC:
            yield f"{hook} takes {parameter}, and the hook passes {told}; name what you want of that"
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            yield f"{hook} has the keyword-only argument {name!r}, which pluggy does not fill; remove the * before it"
        elif name not in passed and parameter.default is inspect.Parameter.empty:
            yield (
                f"{hook} takes {name!r}, and the hook passes {told}; leave it out, or upgrade monoquant if the plugin "
                "is newer"
            )
