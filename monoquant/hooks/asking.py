"""Calling a plugin's hooks: its answers are held to what the hook returns, and its errors name it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import attrs

from monoquant.errors import ConfigError, FileError, PluginError
from monoquant.hooks.control import Trace, shown
from monoquant.values import Origin

T = TypeVar("T")


class _WrongAnswerError(Exception):
    """What a hook gave back is no list of the right things."""


@attrs.frozen(eq=False)
class Plugin:
    """A registered plugin.

    Args:
        label: What errors call it.
        origin: Its distribution and version.
        hooks: Its implementations by hook.
    """

    label: str
    origin: Origin
    hooks: Mapping[str, Callable[..., Any]]
    _takes: Mapping[str, Collection[str]] = attrs.field(init=False)

    @_takes.default
    def _read_signatures(self) -> Mapping[str, Collection[str]]:
        return {hook: inspect.signature(function).parameters for hook, function in self.hooks.items()}

    def members(self, hook: str, kind: type[T], arguments: Mapping[str, Any], trace: Trace | None) -> list[T]:
        """Ask for what it contributes.

        Args:
            hook: One that it implements.
            kind: Of what it must return instances, in a list or any other iterable.
            arguments: All that the hook passes, by name.
            trace: Who is told; None for nobody.

        Raises:
            PluginError: When it raises, or returns anything else.
            ConfigError: When it says so of its settings; a note names it. FileError is left alone in the same way.
        """
        try:
            return self.call(hook, arguments, trace, lambda answer: _members(answer, kind))
        except _WrongAnswerError as error:
            raise PluginError(f"{self.label}: {hook} {error}; return instances of {kind.__name__} in a list") from None
        except (ConfigError, FileError) as error:  # its user's mistake, and no defect of the plugin
            error.add_note(f"raised by {hook} of {self.label}: correct what it names, or block the plugin")
            raise
        except Exception as error:
            raise PluginError(
                f"{self.label}: {hook} raised {type(error).__name__}: {error}; repair or block it"
            ) from error

    def call(
        self,
        hook: str,
        arguments: Mapping[str, Any],
        trace: Trace | None,
        read: Callable[[Any], T] = lambda answer: answer,
    ) -> T:
        """Call an implementation.

        Args:
            hook: One that it implements.
            arguments: All that the hook passes, by name; an implementation may leave some out.
            trace: Who is told; None for nobody.
            read: What is made of the answer, generators run out; default: nothing.

        Raises:
            Exception: What it raises.
        """
        function = self.hooks[hook]
        takes = self._takes[hook]
        start = time.perf_counter()
        try:
            answer = read(function(**{name: value for name, value in arguments.items() if name in takes}))
        except Exception as error:
            self._tell(trace, hook, arguments, f"raised {type(error).__name__}: {error}", start)
            raise
        self._tell(trace, hook, arguments, f"-> {shown(answer)}", start)
        return answer

    def _tell(self, trace: Trace | None, hook: str, arguments: Mapping[str, Any], outcome: str, start: float) -> None:
        if trace is not None:
            spent = (time.perf_counter() - start) * 1e3
            listed = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
            trace(f"{self.origin}: {hook}({listed}) {outcome} [{spent:.2f} ms]")


def _members(answer: Any, kind: type[T]) -> list[T]:
    if not isinstance(answer, Iterable) or isinstance(answer, (str, bytes, type)):
        raise _WrongAnswerError(f"returned {answer!r}")
    members = list(answer)
    for member in members:
        if isinstance(member, type):
            raise _WrongAnswerError(f"returned the class {member.__name__}")
        if not isinstance(member, kind):
            raise _WrongAnswerError(f"returned {member!r} in its list")
    return members
