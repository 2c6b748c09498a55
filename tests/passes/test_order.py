"""Where the passes of plugins stand among those of the caller."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import monoquant as mq
from monoquant.passes.order import pipeline

ORIGIN = mq.Origin("example", "2.0")
BASE = (mq.SkipSelectionPass(), mq.CalibrationPass([1]), mq.Int4PackPass(), mq.Int8PackPass(), mq.ValidationPass())


class Idle(mq.Pass):
    """Does nothing."""

    def run(self, context: mq.QuantContext) -> None: ...


class BehindSelection(Idle):
    follows = (mq.SkipSelectionPass,)


class BehindCalibration(Idle):
    follows = (mq.CalibrationPass,)


class BehindCalibrationIfThere(Idle):
    follows = (mq.SkipSelectionPass,)
    after = (mq.CalibrationPass,)


class BeforePacking(Idle):
    before = (mq.PackPass,)


class BehindPacking(Idle):
    follows = (mq.PackPass,)


class BetweenSelectionAndCalibration(Idle):
    follows = (mq.SkipSelectionPass,)
    before = (mq.CalibrationPass,)


class BehindOther(Idle):
    follows = (BehindPacking,)


class Contradiction(Idle):
    follows = (mq.PackPass,)
    before = (mq.CalibrationPass,)


class Nowhere(Idle):
    """Says nothing about its place."""


class Single(BehindSelection):
    single = True


def placed(*added: mq.Pass, base: tuple[mq.Pass, ...] = BASE, origins: tuple[mq.Origin, ...] = ()) -> list[str]:
    entries = [mq.Registered(one, origin) for one, origin in itertools.zip_longest(added, origins, fillvalue=ORIGIN)]
    return [type(step.value).__name__.removesuffix("Pass") for step in pipeline(base, entries).steps]


@pytest.mark.parametrize(
    ("added", "order"),
    [
        (BehindSelection(), "SkipSelection + Calibration Int4Pack Int8Pack Validation"),
        (BehindCalibration(), "SkipSelection Calibration + Int4Pack Int8Pack Validation"),
        (BehindCalibrationIfThere(), "SkipSelection Calibration + Int4Pack Int8Pack Validation"),
        (BeforePacking(), "SkipSelection Calibration + Int4Pack Int8Pack Validation"),
        (BehindPacking(), "SkipSelection Calibration Int4Pack Int8Pack + Validation"),
        (BetweenSelectionAndCalibration(), "SkipSelection + Calibration Int4Pack Int8Pack Validation"),
    ],
)
def test_a_pass_stands_where_it_says(added: mq.Pass, order: str) -> None:
    """Right behind all that it follows, or right before what it must not miss."""
    assert placed(added) == order.replace("+", type(added).__name__).split()


def test_a_pass_may_follow_one_of_another_plugin() -> None:
    """In whatever order they are registered."""
    for added in itertools.permutations([BehindOther(), BehindPacking()]):
        assert placed(*added)[-3:] == ["BehindPacking", "BehindOther", "Validation"]


def test_passes_of_several_plugins_in_one_place_keep_their_order() -> None:
    """The order of the registry, which is that of names."""
    first, second = mq.Origin("ant"), mq.Origin("bee")
    added = (BehindSelection(), Single())
    assert placed(*added, origins=(first, second))[:3] == ["SkipSelection", "BehindSelection", "Single"]


def test_a_pass_of_the_caller_may_name_one_of_a_plugin() -> None:
    """What the caller's pass says of others holds as well."""

    class Reader(Idle):
        follows = (mq.PackPass,)
        after = (Nowhere,)

    class Writer(Idle):
        follows = (mq.PackPass,)
        before = (Nowhere,)

    assert placed(Nowhere(), base=(*BASE, Reader()))[-2:] == ["Nowhere", "Reader"]
    assert placed(Nowhere(), base=(*BASE, Writer()))[-2:] == ["Writer", "Nowhere"]


ADDED = [BehindSelection(), BehindCalibration(), BeforePacking(), BehindPacking(), BehindOther(), Single()]


@settings(deadline=None)
@given(st.permutations(ADDED), st.sets(st.sampled_from(range(1, 4))))
def test_any_order_of_registration_makes_one_pipeline(added: list[mq.Pass], kept: set[int]) -> None:
    """And every declaration of every pass holds in it, whatever the caller's pipeline lacks."""
    base = tuple(one for position, one in enumerate(BASE) if position in {0, 2, *kept})

    def built(order: list[mq.Pass]) -> Any:
        entries = [mq.Registered(one, mq.Origin(type(one).__name__)) for one in order]
        registry = mq.Registry(passes=entries)
        return pipeline(base, registry.passes)

    found = built(added)
    assert found == built(ADDED)
    steps = [step.value for step in found.steps]
    for position, pass_ in enumerate(steps):
        assert all(any(isinstance(one, kind) for one in steps[:position]) for kind in pass_.follows)
        assert not any(isinstance(one, pass_.before) for one in steps[:position])
    left_out = [note for note in found.notes if note.code == "pass-left-out"]
    assert len(steps) + len(left_out) == len(base) + len(ADDED)


def test_what_is_left_out_is_told() -> None:
    """With the reason, under the plugin's origin."""
    base = (mq.SkipSelectionPass(), mq.Int4PackPass(), Single())
    entries = [mq.Registered(one, ORIGIN) for one in (BehindCalibration(), Single())]
    notes = pipeline(base, entries).notes
    assert [(str(note), note.severity, note.origin) for note in notes] == [
        ("Pass Single was left out: it may be there once, and is there already.", mq.Severity.INFO, ORIGIN),
        (
            "Pass BehindCalibration was left out: it follows CalibrationPass, which is not there.",
            mq.Severity.INFO,
            ORIGIN,
        ),
    ]


@pytest.mark.parametrize(
    ("added", "text"),
    [
        (Nowhere(), r"^plugin example 2\.0: its pass Nowhere does not say where it belongs; declare follows, after or"),
        (
            Contradiction(),
            r"^plugin example 2\.0: its pass Contradiction must stand before CalibrationPass and behind Int8PackPass, "
            "which stand the other way round; correct its follows",
        ),
    ],
)
def test_a_pass_without_a_place_is_refused(added: mq.Pass, text: str) -> None:
    """When the Quantizer is built."""
    registry = mq.Registry(passes=[mq.Registered(added, ORIGIN)])
    with pytest.raises(mq.PluginError, match=text):
        mq.Quantizer(BASE, registry)


def test_the_callers_pipeline_must_fit_together_by_itself() -> None:
    """A plugin's pass does not stand in for one that the caller forgot."""
    with pytest.raises(mq.ConfigError, match="BehindOther needs BehindPacking"):
        placed(BehindPacking(), base=(*BASE, BehindOther()))


def test_the_scheme_is_that_of_the_callers_first_packing_pass() -> None:
    """Also where a plugin's packing pass stands before it."""

    @attrs.frozen
    class Early(mq.Int8PackPass):
        before = (mq.Int4PackPass,)

    registry = mq.Registry(passes=[mq.Registered(Early(), ORIGIN)])
    quantizer = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()], registry)
    assert quantizer.scheme == mq.Scheme()
    assert quantizer.passes == (mq.SkipSelectionPass(), mq.Int4PackPass())


def test_notes_name_the_plugin_of_a_pass() -> None:
    """An error keeps its type; its note tells pass, plugin, layer and position."""

    class Failing(mq.Pass):
        follows = (mq.SkipSelectionPass,)

        def run(self, context: mq.QuantContext) -> None:
            for _ in context.quantized_layers():
                raise KeyError("lost")

    registry = mq.Registry(passes=[mq.Registered(Failing(), ORIGIN)])
    quantizer = mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass()], registry)
    with pytest.raises(KeyError) as caught:
        quantizer.run(nn.Sequential(nn.Linear(64, 64)))
    assert caught.value.__notes__ == [
        "in Failing.run of plugin example 2.0, layer '0' (pass 2 of 3; before it: SkipSelectionPass)"
    ]


@pytest.mark.parametrize("where", ["follows", "after", "before"])
@pytest.mark.parametrize("given", ["SkipSelectionPass", ("PackPass",), mq.PackPass, (nn.Module,), [mq.PackPass]])
def test_a_place_is_a_tuple_of_classes_of_passes(where: str, given: Any) -> None:
    """Anything else is told with the pass, and the plugin if it is of one."""
    kind = type("Misplaced", (Idle,), {where: given})
    text = rf"Misplaced has {where}=.*; give a tuple of classes of passes, such as \(PackPass,\)"
    with pytest.raises(mq.PluginError, match=rf"^plugin example 2\.0: its pass {text}"):
        pipeline(BASE, [mq.Registered(kind(), ORIGIN)])
    with pytest.raises(mq.ConfigError, match=f"^{text}"):
        pipeline((*BASE, kind()), [])


class Unbound(BehindSelection):
    """Does not know what it wants."""

    def bound(self, registry: mq.Registry) -> mq.Pass:
        raise KeyError("lost")


def test_who_raises_while_names_are_looked_up_is_told() -> None:
    """As anywhere else."""
    registry = mq.Registry(passes=(mq.Registered(Unbound(), ORIGIN),))
    with pytest.raises(KeyError, match="lost") as caught:
        mq.Quantizer(BASE, registry)
    assert caught.value.__notes__ == ["in Unbound.bound of plugin example 2.0"]
    with pytest.raises(KeyError, match="lost") as caught:
        mq.Quantizer([*BASE, Unbound()])
    assert caught.value.__notes__ == ["in Unbound.bound"]
    with pytest.raises(mq.ConfigError, match="algorithm='unknown'") as refused:
        mq.Quantizer([mq.SkipSelectionPass(), mq.Int4PackPass(algorithm="unknown")])
    assert not hasattr(refused.value, "__notes__")
