"""Calling the passes of a run: in order, watched, and held to what each may write."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from monoquant.context import QuantContext
from monoquant.errors import PassError, PluginError
from monoquant.guard import WORKING, Guard, Parameters, watchable
from monoquant.passes.base import Pass
from monoquant.passes.order import Step, name_of
from monoquant.registry import PassWatcher, Registered
from monoquant.values import BUILT_IN, CALLER, Origin

Watchers = tuple[Registered[PassWatcher], ...]


@attrs.frozen(eq=False)
class Stepper:
    """Calls passes on the context of one run.

    Args:
        steps: All passes, in order.
        context: Of the run.
    """

    steps: tuple[Step, ...]
    context: QuantContext
    _parameters: Parameters = attrs.field(init=False)
    _watchers: Watchers = attrs.field(init=False)

    @_parameters.default
    def _watchable(self) -> Parameters:
        return watchable(self.context.model)

    @_watchers.default
    def _registered(self) -> Watchers:
        return self.context.registry.watchers

    def each(self, phase: str) -> None:
        """Call one method of every pass.

        Args:
            phase: ``plan`` or ``prepare``.

        Raises:
            Exception: What a pass raises, with a note that names pass, plugin and layer.
            PassError: When a pass writes what it may not.
        """
        for index in range(len(self.steps)):
            self._call(phase, index)

    def work(self, index: int) -> None:
        """Let one pass do its work, and tell those who watch.

        Args:
            index: Of the pass.

        Raises:
            Exception: What the pass raises, with a note that names pass, plugin and layer.
            PassError: When the pass writes what it may not.
            PluginError: When a watcher raises, or changes anything.
        """
        pass_ = self.steps[index].value
        try:
            self._tell("before", pass_, lambda watcher: watcher.before and watcher.before(pass_, self.context))
            for phase in WORKING:
                self._call(phase, index)
        except BaseException as error:
            self._tell_of_failure(pass_, error)
            raise
        self._tell("after", pass_, lambda watcher: watcher.after and watcher.after(pass_, self.context, None))

    def _call(self, phase: str, index: int) -> None:
        step, context = self.steps[index], self.context
        kind = type(step.value)
        if getattr(kind, phase) is getattr(Pass, phase):
            return  # nothing was overridden, so there is nothing to call
        context.begin(_speaker(step))
        before = self._guard()
        try:
            getattr(step.value, phase)(context)
            problem = before.written_by_pass(kind.__mro__, phase)
            if problem:
                raise PassError(f"{name_of(step.value)}.{phase} {problem}")
        except Exception as error:
            error.add_note(self._where(phase, index))
            raise

    def _guard(self) -> Guard:
        return Guard(self.context, self._parameters)

    def _where(self, phase: str, index: int) -> str:
        step = self.steps[index]
        before = ", ".join(name_of(one.value) for one in self.steps[:index]) or "none"
        plugin = "" if step.origin == CALLER else f" of plugin {step.origin}"
        layer = "" if self.context.current_layer is None else f", layer {self.context.current_layer!r}"
        position = f"pass {index + 1} of {len(self.steps)}; before it: {before}"
        return f"in {name_of(step.value)}.{phase}{plugin}{layer} ({position})"

    def _tell(self, moment: str, pass_: Pass, call: Callable[[PassWatcher], object]) -> None:
        failures = list(self._failures(moment, pass_, call))
        if failures:
            raise failures[0] if len(failures) == 1 else PluginError("; ".join(map(str, failures)))

    def _tell_of_failure(self, pass_: Pass, error: BaseException) -> None:
        for failure in self._failures(
            "after", pass_, lambda watcher: watcher.after and watcher.after(pass_, self.context, error)
        ):
            error.add_note(f"besides, {failure}")

    def _failures(self, moment: str, pass_: Pass, call: Callable[[PassWatcher], object]) -> Iterator[PluginError]:
        """Tell every watcher, also when one of them fails."""
        for watcher in self._watchers:
            who = f"plugin {watcher.origin}: monoquant_{moment}_pass"
            before = self._guard()
            try:
                call(watcher.value)
            except Exception as error:
                failure = PluginError(f"{who} raised {type(error).__name__} at {name_of(pass_)}: {error}")
                failure.__cause__ = error
                yield failure
            changed = before.written_by_watcher()
            if changed:
                yield PluginError(f"{who} changed {changed} at {name_of(pass_)}: it may look, and change nothing")


def _speaker(step: Step) -> Origin:
    """Who says what a pass decides and finds: a caller's pipeline is made of built-in passes, mostly."""
    is_built_in = type(step.value).__module__.partition(".")[0] == BUILT_IN.name
    return BUILT_IN if step.origin == CALLER and is_built_in else step.origin
