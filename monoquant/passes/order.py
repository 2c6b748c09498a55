"""Where passes stand: holding a pipeline to what its passes declare, and finding the places of those from plugins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from monoquant.errors import ConfigError, PluginError
from monoquant.passes.base import Pass
from monoquant.passes.pack import PackPass
from monoquant.registry import Registered
from monoquant.values import CALLER, Finding, Origin, Severity

Step = Registered[Pass]


@attrs.frozen
class Pipeline:
    """All passes of a run.

    Args:
        steps: The caller's passes and those of plugins, in the order in which they run.
        notes: Which passes plugins added, and which found no place.
    """

    steps: tuple[Step, ...]
    notes: tuple[Finding, ...] = ()


def pipeline(given: Sequence[Pass], added: Iterable[Step]) -> Pipeline:
    """Put the passes of plugins among those that the caller gave.

    A pass stands right behind all that it ``follows`` or comes ``after``; one that only says ``before`` stands right
    before that. Passes of several plugins in one place stand by the names of the plugins. One that follows a pass that
    is not there, or is ``single`` and there already, is left out.

    Args:
        given: The caller's passes; they must fit together on their own.
        added: Passes of plugins in one order.

    Raises:
        ConfigError: When the caller's passes do not fit together.
        PluginError: When a plugin's pass says nothing about its place, or contradicts the other passes.
    """
    added = list(added)
    malformed = [problem for pass_ in given for problem in _malformed(pass_)]
    if malformed:
        raise ConfigError("; ".join(malformed))
    malformed = [f"plugin {step.origin}: its pass {problem}" for step in added for problem in _malformed(step.value)]
    if malformed:
        raise PluginError("; ".join(malformed))
    _require_order(given)
    steps = [Registered(pass_, CALLER) for pass_ in given]
    notes: list[Finding] = []
    waiting = added
    while (ready := next((step for step in waiting if not _missing(step, steps)), None)) is not None:
        waiting.remove(ready)
        if _is_there(ready.value, steps):
            notes.append(_left_out(ready, "it may be there once, and is there already"))
            continue
        position = _place(ready, steps)
        steps.insert(position, ready)
        neighbour = f"behind {name_of(steps[position - 1].value)}" if position else "first of all"
        notes.append(_note("pass-added", f"Pass {name_of(ready.value)} took part, {neighbour}.", ready.origin))
    notes += [_left_out(step, f"it follows {_missing(step, steps)}, which is not there") for step in waiting]
    return Pipeline(tuple(steps), tuple(notes))


def name_of(pass_: Pass) -> str:
    """What errors and reports call a pass.

    Args:
        pass_: The pass.
    """
    return type(pass_).__name__


def _malformed(pass_: Pass) -> list[str]:
    """What is no declaration of a place at all."""
    return [
        f"{name_of(pass_)} has {where}={given!r}; give a tuple of classes of passes, such as (PackPass,)"
        for where in ("follows", "after", "before")
        if not isinstance(given := getattr(pass_, where), tuple)
        or not all(isinstance(kind, type) and issubclass(kind, Pass) for kind in given)
    ]


def _note(code: str, message: str, origin: Origin) -> Finding:
    return Finding(code, Severity.INFO, message, origin=origin)


def _left_out(step: Step, why: str) -> Finding:
    return _note("pass-left-out", f"Pass {name_of(step.value)} was left out: {why}.", step.origin)


def _missing(step: Step, steps: Sequence[Step]) -> str:
    kinds = [kind for kind in step.value.follows if not any(isinstance(one.value, kind) for one in steps)]
    return ", ".join(kind.__name__ for kind in kinds)


def _is_there(pass_: Pass, steps: Sequence[Step]) -> bool:
    return pass_.single and any(type(one.value) is type(pass_) for one in steps)


def _place(step: Step, steps: Sequence[Step]) -> int:
    pass_, others = step.value, [one.value for one in steps]
    behind = [i for i, other in enumerate(others) if isinstance(other, (*pass_.follows, *pass_.after))]
    behind += [i for i, other in enumerate(others) if isinstance(pass_, other.before)]
    before = [i for i, other in enumerate(others) if isinstance(other, pass_.before)]
    before += [i for i, other in enumerate(others) if isinstance(pass_, (*other.follows, *other.after))]
    earliest, latest = max(behind, default=-1) + 1, min(before, default=len(others))
    if earliest > latest:
        late, early = name_of(others[latest]), name_of(others[earliest - 1])
        raise PluginError(
            f"plugin {step.origin}: its pass {name_of(pass_)} must stand before {late} and behind {early}, which stand "
            "the other way round; correct its follows, after or before, or block the plugin"
        )
    if not behind and not before:
        raise PluginError(
            f"plugin {step.origin}: its pass {name_of(pass_)} does not say where it belongs; declare follows, after or "
            "before, with passes that are always there, such as SkipSelectionPass or PackPass"
        )
    if not behind:
        return latest
    while earliest < latest and steps[earliest].origin != CALLER:
        earliest += 1
    return earliest


def _require_order(passes: Sequence[Pass]) -> None:
    problems = [problem for position in range(len(passes)) for problem in _order_problems(passes, position)]
    if not any(isinstance(pass_, PackPass) for pass_ in passes):
        problems.append("no pass packs anything: add Int4PackPass() or Int8PackPass()")
    if problems:
        raise ConfigError("the passes do not fit together: " + "; ".join(problems))


def _order_problems(passes: Sequence[Pass], position: int) -> list[str]:
    pass_, earlier, later = passes[position], passes[:position], passes[position + 1 :]
    name = name_of(pass_)
    problems = [
        f"{name} needs {kind.__name__}: put one before it, at position {position + 1}"
        for kind in pass_.follows
        if not any(isinstance(other, kind) for other in passes)
    ]
    problems += [
        f"{name} stands before {kind.__name__}: move it behind"
        for kind in dict.fromkeys((*pass_.follows, *pass_.after))
        if any(isinstance(other, kind) for other in later) and not any(isinstance(other, kind) for other in earlier)
    ]
    problems += [
        f"{name} stands behind {kind.__name__}: move it before"
        for kind in pass_.before
        if any(isinstance(other, kind) for other in earlier)
    ]
    if pass_.single and any(type(other) is type(pass_) for other in earlier):
        problems.append(f"{name} is there twice: keep one")
    if type(pass_).run is Pass.run and type(pass_).plan is Pass.plan:
        problems.append(f"{name} does nothing: define run(self, context)")
    return problems
