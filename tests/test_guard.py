"""What passes may write, and that everything else is refused with what would be right."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import monoquant as mq
from monoquant.context import QuantContext
from monoquant.guard import Guard, watchable
from monoquant.observers import InputRange
from monoquant.ranges import BUILT_IN_OBSERVERS
from monoquant.source import inventory

Change = Callable[[QuantContext], Any]
LAYER = "0"


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


def refusal(change: Change, phase: str = "run", *, packed: bool = False, model: nn.Module | None = None) -> str:
    """What a run says to a pass that does something, before or behind packing."""

    class Meddler(mq.Pass):
        follows = (mq.PackPass if packed else mq.SkipSelectionPass,)

        def run(self, context: QuantContext) -> None: ...

    setattr(Meddler, phase, lambda _, context: change(context))
    passes = [mq.SkipSelectionPass.from_options(), mq.Int4PackPass(algorithm="round_to_nearest")]
    passes.insert(2 if packed else 1, Meddler())
    try:
        mq.Quantizer(passes).run(build() if model is None else model)
    except mq.PassError as error:
        return str(error).removeprefix("Meddler.")
    return ""


def set_item(field: str, key: Any, value: Any) -> Change:
    return lambda context: getattr(context, field).__setitem__(key, value)


def evolve_plan(**changes: Any) -> Change:
    return lambda context: context.plan.__setitem__(LAYER, attrs.evolve(context.plan[LAYER], **changes))


DECISION = mq.Decision(LAYER, mq.Action.SKIP, "a whim")
FINDING = mq.Finding("a", mq.Severity.INFO, "b")
REQUEST = InputRange(BUILT_IN_OBSERVERS[0], 64)

REFUSED: list[tuple[Change, dict[str, Any], str]] = [
    (
        evolve_plan(reason="late"),
        {"packed": True},
        "run changed the decision on layer '0', which is packed already: dec",
    ),
    (
        lambda context: context.plan.pop(LAYER),
        {"packed": True},
        "run changed the decision on layer '0', which is packed already: decide in plan()",
    ),
    (set_item("plan", LAYER, DECISION), {}, "run changed the decision on layer '0': decide once, by context.decide()"),
    (evolve_plan(weights=()), {"phase": "prepare"}, "prepare changed the decision on layer '0': decide once"),
    (set_item("plan", "new", DECISION), {}, "run decided on layer 'new' too late: decide in plan()"),
    (set_item("targets", LAYER, 1), {}, "run changed context.targets, which is written in plan(): do that there"),
    (set_item("targets", LAYER, 1), {"phase": "plan"}, "plan changed context.targets, which only SkipSelectionPass"),
    (set_item("obstacles", LAYER, 1), {}, "run changed context.obstacles, which is written in plan()"),
    (lambda context: context.want(LAYER, REQUEST), {}, "run changed context.wanted, which is written in prepare()"),
    (lambda context: context.wanted_gradients.add(LAYER), {}, "run changed context.wanted_gradients, which is written"),
    (lambda context: context.want_moments(LAYER, "weight", full=True), {}, "run changed context.wanted_moments"),
    (lambda context: setattr(context, "weighs_rows", True), {}, "run changed context.weighs_rows, which is written in"),
    (set_item("packed", LAYER, 1), {}, "run changed context.packed, which only PackPass write: derive the pass from"),
    (set_item("measurements", LAYER, 1), {}, "run changed context.measurements, which only ValidationPass write"),
    (lambda context: setattr(context, "validation", 1), {}, "run changed context.validation, which only Validation"),
    (lambda context: setattr(context, "calibration", 1), {}, "run changed context.calibration, which only Calibrat"),
    (lambda context: setattr(context, "observed", {1: 2}), {}, "run changed context.observed, which only Calibration"),
    (lambda context: setattr(context, "registry", mq.Registry()), {}, "run changed context.registry, which is written"),
    (lambda context: setattr(context, "layers", ()), {}, "run changed context.layers, which is written in no phase()"),
    (lambda context: context.findings.clear(), {}, "run took findings back, which stay once they are reported"),
    (
        lambda context: context.report([FINDING]) or context.findings.pop(0),
        {},
        "run too",
    ),
    (set_item("packed", LAYER, 1), {"phase": "requires"}, "requires changed context.packed, which is written in run()"),
    (
        lambda context: context.model[0].weight.data.mul_(1) is context.model[0].bias.detach().mul_(2),
        {},
        "run wrote to parameter '0.bias' of the model: use context.replace_weight()",
    ),
]


@pytest.mark.parametrize(("change", "options", "text"), REFUSED)
def test_what_a_pass_may_not_write_is_refused(change: Change, options: dict[str, Any], text: str) -> None:
    """The error names pass, phase and field, and says what would be right."""
    assert refusal(change, **options).startswith(text)


def refine(context: QuantContext) -> None:
    context.refine(LAYER, mq.Scheme(group_size=32), "smaller groups, because")


ALLOWED: list[tuple[Change, dict[str, Any]]] = [
    (lambda context: context.report([FINDING]), {}),
    (lambda context: context.report([FINDING]), {"packed": True}),
    (lambda context: context.replace_weight(LAYER, torch.ones(64, 64)), {}),
    (refine, {}),
    (lambda context: context.decide(DECISION), {"phase": "plan"}),
    (lambda context: context.decline("2", mq.Obstacle("never")), {"phase": "plan"}),
    (lambda context: context.want(LAYER, REQUEST), {"phase": "prepare"}),
    (lambda context: context.weight(LAYER).sum(), {}),
    (lambda context: context.quantized_layers().__next__(), {"packed": True}),
]


@pytest.mark.parametrize(("change", "options"), ALLOWED)
def test_what_a_pass_may_write_is_let_through(change: Change, options: dict[str, Any]) -> None:
    """Findings, replaced weights, refined decisions, and each thing in its phase."""
    assert refusal(change, **options) == ""


def test_subclasses_may_write_what_their_base_writes() -> None:
    """One's own packing pass packs."""

    class OwnPack(mq.Int4PackPass):
        def run(self, context: QuantContext) -> None:
            super().run(context)
            context.note_algorithm(LAYER, "mine")

    result = mq.Quantizer([mq.SkipSelectionPass(), OwnPack()]).run(build())
    assert result.report.layers[0].algorithm == "round_to_nearest and mine"


def test_passes_that_run_the_model_may_let_it_write_to_itself() -> None:
    """An Embedding with max_norm renormalizes its weight; calibration puts it back."""
    model = nn.Sequential(nn.Embedding(50, 64, max_norm=0.1), nn.Linear(64, 64))
    with torch.no_grad():
        model[0].weight.mul_(10)
    before = model[0].weight.detach().clone()
    mq.quantize(model, calibration_data=[torch.arange(48)], accuracy_warning="ignore", plugins=False)
    assert torch.equal(model[0].weight, before)


def test_the_model_is_as_it_was_after_a_refusal() -> None:
    """Packing writes to a copy, and only in the end."""
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert refusal(evolve_plan(reason="late"), packed=True, model=model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert type(model[0]) is nn.Linear


def test_models_made_in_inference_mode_can_be_guarded() -> None:
    """Their parameters have no version to compare."""
    with torch.inference_mode():
        model = build()
    assert refusal(lambda _: None, model=model) == ""


def test_every_field_says_who_writes_it() -> None:
    """The docstring and what is held to it are one: phase and classes are those in the text."""
    texts = _entries()
    for field in attrs.fields(QuantContext):
        if field.name.startswith("_"):
            continue
        phase, writers = field.metadata["phase"], field.metadata["writers"]
        text = texts[field.name]
        if field.name == "model":
            continue
        for writer in writers:
            base = {"PackPass": "packing passes"}.get(writer, writer)
            assert base in text, field.name
        if phase in ("plan", "prepare"):
            assert f"{phase} phase" in text, field.name


def _entries() -> dict[str, str]:
    entries: dict[str, str] = {}
    for line in (inspect.getdoc(QuantContext) or "").split("Args:\n")[1].splitlines():
        found = re.match(r"    (\w+): (.*)", line)
        if found:
            name = found[1]
            entries[name] = found[2]
        else:
            entries[name] += " " + line.strip()
    return entries


def test_watchers_may_change_nothing() -> None:
    """Not even what passes may."""
    model = build()
    context = QuantContext(model, mq.Scheme(), inventory(model), mq.Registry())
    guard = Guard(context, watchable(model))
    assert guard.written_by_watcher() == ""
    context.report([FINDING])
    context.want("0", REQUEST)
    model[2].bias.data = model[2].bias.data + 1
    with torch.no_grad():
        model[0].weight.add_(1)
    told = "context.wanted, context.findings, parameter '0.weight' of the model"
    assert guard.written_by_watcher() == told
