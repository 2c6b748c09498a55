"""Watching passes: those who watch hear of everything, change nothing, and fail the run where they fail."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import monoquant as mq

SCHEME = mq.Scheme()
Watcher = Callable[..., Any]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def plugin(name: str, before: Watcher | None = None, after: Watcher | None = None) -> object:
    """An object with one or two of the hooks that watch."""

    members: dict[str, Any] = {}
    if before is not None:
        members["monoquant_before_pass"] = mq.hookimpl(lambda _, pass_, context: before(pass_, context))
    if after is not None:
        members["monoquant_after_pass"] = mq.hookimpl(lambda _, pass_, context, error: after(pass_, context, error))
    return type(name, (), members)()


def quantizer(*plugins: object, passes: tuple[mq.Pass, ...] = ()) -> mq.Quantizer:
    registry = mq.PluginManager(plugins, discover=False).registry(SCHEME)
    return mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(), *passes], registry)


def fail(*_: Any) -> None:
    raise KeyError("lost")


class Interrupted(mq.Pass):
    """Somebody presses Ctrl-C."""

    follows = (mq.PackPass,)

    def run(self, context: mq.QuantContext) -> None:
        raise KeyboardInterrupt


class Failing(mq.Pass):
    follows = (mq.PackPass,)

    def run(self, context: mq.QuantContext) -> None:
        raise ValueError("broken")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_watcher_that_raises_fails_the_run(moment: str, inplace: bool) -> None:
    """With its plugin, its hook and the pass in the text, its own exception as the cause, and the model as it was."""
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def at_packing(pass_: mq.Pass, *_: Any) -> None:
        if isinstance(pass_, mq.PackPass):
            raise KeyError("lost")

    expected = rf"^plugin Bad: monoquant_{moment}_pass raised KeyError at Int4PackPass: 'lost'$"
    with pytest.raises(mq.PluginError, match=expected) as caught:
        quantizer(plugin("Bad", **{moment: at_packing})).run(model, inplace=inplace)
    assert isinstance(caught.value.__cause__, KeyError)
    assert type(model[0]) is nn.Linear
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_one_that_raises_keeps_the_others_from_nothing() -> None:
    """Who opened something before a pass can close it after."""
    events: list[str] = []

    def noting(what: str) -> Watcher:
        return lambda _pass, _context, error=None: events.append(f"{what} {type(error).__name__}")

    bad, good = plugin("Bad", before=fail), plugin("Good", noting("before"), noting("after"))
    with pytest.raises(mq.PluginError, match="plugin Bad: monoquant_before_pass raised KeyError at SkipSelectionPass"):
        quantizer(bad, good).run(build())
    assert events == ["before NoneType", "after PluginError"]


def test_all_that_raise_are_told() -> None:
    """In one error."""
    expected = "plugin Ant: monoquant_before_pass raised .*; plugin Bee: monoquant_before_pass raised"
    with pytest.raises(mq.PluginError, match=expected):
        quantizer(plugin("Bee", before=fail), plugin("Ant", before=fail)).run(build())


def test_an_error_of_the_pass_is_stronger() -> None:
    """What a watcher raises on top of it becomes a note."""
    with pytest.raises(ValueError, match="broken") as caught:
        quantizer(plugin("Bad", after=lambda _, __, error: fail() if error else None), passes=(Failing(),)).run(build())
    assert caught.value.__notes__[-1] == (
        "besides, plugin Bad: monoquant_after_pass raised KeyError at Failing: 'lost'"
    )


def test_an_interrupt_is_watched_as_well() -> None:
    """A progress bar can be taken down before Ctrl-C reaches the caller."""
    seen: list[Any] = []
    bar = plugin("Bar", after=lambda _pass, _context, error: seen.append(type(error)))
    with pytest.raises(KeyboardInterrupt):
        quantizer(bar, passes=(Interrupted(),)).run(build())
    assert seen == [type(None), type(None), KeyboardInterrupt]


def scale_weight(context: mq.QuantContext) -> None:
    with torch.no_grad():
        context.model[0].weight.mul_(2)


CHANGES: list[tuple[Callable[[mq.QuantContext], Any], str]] = [
    (lambda context: context.report([mq.Finding("a", mq.Severity.INFO, "b")]), "context.findings"),
    (lambda context: context.plan.clear(), "context.plan"),
    (lambda context: context.packed.clear(), "context.packed"),
    (lambda context: setattr(context, "calibration", 3), "context.calibration"),
    (lambda context: context.algorithms.update({"0": "mine"}), "context.algorithms"),
    (scale_weight, "parameter '0.weight' of the model"),
]


@pytest.mark.parametrize(("change", "what"), CHANGES)
def test_a_watcher_that_changes_something_is_refused(change: Callable[[mq.QuantContext], Any], what: str) -> None:
    """What is cheap to see is seen."""

    def at_packing(pass_: mq.Pass, context: mq.QuantContext, _: Any) -> None:
        if isinstance(pass_, mq.PackPass):
            change(context)

    expected = rf"^plugin Bad: monoquant_after_pass changed {what} at Int4PackPass: it may look, and change nothing$"
    with pytest.raises(mq.PluginError, match=expected):
        quantizer(plugin("Bad", after=at_packing)).run(build())


def test_replaced_weights_are_seen() -> None:
    """A watcher cannot slip another weight in before packing."""

    def replace(_: mq.Pass, context: mq.QuantContext) -> None:
        context.replace_weight("0", torch.zeros(64, 64))

    with pytest.raises(mq.PluginError, match=r"monoquant_before_pass changed context\._replaced_weights"):
        quantizer(plugin("Bad", before=replace)).run(build())


def test_watchers_see_what_is_measured_before_packing() -> None:
    """``plan(measured=True)`` lets passes work as well; a plain plan does not."""
    seen: list[str] = []
    watched = quantizer(plugin("Log", before=lambda pass_, _: seen.append(type(pass_).__name__)))
    watched.plan(build())
    assert seen == []
    watched.plan(build(), measured=True)
    assert seen == ["SkipSelectionPass"]


def test_watchers_are_told_in_the_order_of_names() -> None:
    """However they are registered."""
    for order in (("Bee", "Ant"), ("Ant", "Bee")):
        seen: list[str] = []
        quantizer(*(plugin(name, before=functools.partial(_append, seen, name)) for name in order)).run(build())
        assert seen == ["Ant", "Bee"] * 2


def _append(seen: list[str], name: str, _pass: mq.Pass, _context: mq.QuantContext) -> None:
    seen.append(name)


class Outspoken(mq.Pass):
    """Decides and finds."""

    follows = (mq.SkipSelectionPass,)

    def plan(self, context: mq.QuantContext) -> None:
        context.decide(mq.Decision("0", mq.Action.SKIP, "mine"))

    def run(self, context: mq.QuantContext) -> None:
        context.report([mq.Finding("seen", mq.Severity.INFO, "Seen.")])


def test_a_pass_that_the_caller_wrote_speaks_for_the_caller() -> None:
    """And not for monoquant, which says what its own passes in the same pipeline decide and find."""
    passes = [mq.SkipSelectionPass(), Outspoken(), mq.Int4PackPass(exact=True)]
    report = mq.Quantizer(passes).run(build()).report
    assert [(record.layer, record.origin.name) for record in report.layers] == [("0", "caller"), ("2", "monoquant")]
    assert [(finding.code, finding.origin.name) for finding in report.findings] == [("seen", "caller")]


def test_a_watcher_that_takes_the_registry_away_is_refused_too() -> None:
    """All watchers are still told."""
    seen: list[str] = []

    def take(_: mq.Pass, context: mq.QuantContext) -> None:
        context.registry = None  # type: ignore[assignment]

    with pytest.raises(mq.PluginError, match=r"plugin Taker: monoquant_before_pass changed context\.registry"):
        quantizer(plugin("Taker", take), plugin("Witness", lambda pass_, _: seen.append(str(pass_)))).run(build())
    assert len(seen) == 1
