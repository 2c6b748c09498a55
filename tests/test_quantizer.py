"""The pipeline's guarantees: order, one decision per layer, dry run, nothing half done, notes on errors."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import monoquant as mq
from monoquant.modules.packed_layer import PackedLayer


@attrs.frozen
class Failing(mq.Pass):
    """Raises in one phase."""

    phase: str = "run"
    error: BaseException = attrs.field(factory=lambda: RuntimeError("boom"))

    def _maybe(self, phase: str) -> None:
        if phase == self.phase:
            raise self.error

    def plan(self, context: mq.QuantContext) -> None:
        self._maybe("plan")

    def prepare(self, context: mq.QuantContext) -> None:
        self._maybe("prepare")

    def requires(self, context: mq.QuantContext) -> None:
        self._maybe("requires")

    def run(self, context: mq.QuantContext) -> None:
        self._maybe("run")

    def ensures(self, context: mq.QuantContext) -> None:
        self._maybe("ensures")


def pipeline(*extra: mq.Pass, tokens: Any = None) -> list[mq.Pass]:
    """A whole pipeline that stays silent, with further passes at its end."""
    data = [mq.CalibrationPass(tokens)] if tokens is not None else []
    skips = mq.SkipSelectionPass.from_options()
    return [skips, *data, mq.Int4PackPass(), mq.ValidationPass(), mq.AccuracyWarningPass("ignore"), *extra]


def test_every_layer_gets_exactly_one_decision(small: nn.Module) -> None:
    """The plan names each module that owns parameters once, in model order."""
    decisions = mq.Quantizer(pipeline()).plan(small)
    owners = [name for name, module in small.named_modules() if list(module.parameters(recurse=False))]
    assert [decision.layer for decision in decisions] == owners
    actions = {decision.layer: decision.action.value for decision in decisions}
    assert actions == {
        "embed": "skip",
        "blocks.0.norm": "skip",
        "blocks.0.up": "quantize",
        "blocks.0.down": "quantize",
        "blocks.1.norm": "skip",
        "blocks.1.up": "quantize",
        "blocks.1.down": "quantize",
        "bn": "skip",
        "lm_head": "skip",
    }


def test_plan_equals_decisions_of_run(small: nn.Module, tokens: list[torch.Tensor]) -> None:
    """The dry run tells what the real run does, in action, reason, rule and origin."""
    quantizer = mq.Quantizer(pipeline(tokens=tokens))
    planned = quantizer.plan(small)
    report = quantizer.run(small).report
    told = [(record.layer, record.action, record.reason, record.rule, record.origin) for record in report.layers]
    assert told == [(d.layer, d.action, d.reason, d.rule, d.origin) for d in planned]


def test_plan_works_on_meta_tensors_and_needs_no_data(small: nn.Module) -> None:
    """Planning a model without weights gives the plan of the real one, and runs no data."""

    def explode() -> Any:
        raise AssertionError("the dry run must not touch data")
        yield

    quantizer = mq.Quantizer(pipeline(tokens=explode()))
    assert quantizer.plan(copy.deepcopy(small).to("meta")) == quantizer.plan(small)


def test_running_twice_gives_equal_reports_and_models(small: nn.Module, tokens: list[torch.Tensor]) -> None:
    """A Quantizer is reusable: same model, same report, same bits."""
    quantizer = mq.Quantizer(pipeline(tokens=tokens))
    first, second = quantizer.run(small), quantizer.run(small)
    assert first.report == second.report
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_run_leaves_the_model_alone(small: nn.Module, tokens: list[torch.Tensor], unchanged: Any) -> None:
    """Without inplace the user's model is bit-identical after a run and shares no tensor with the result."""
    check = unchanged(small)
    result = mq.Quantizer(pipeline(tokens=tokens)).run(small)
    check()
    pointers = {tensor.data_ptr() for tensor in small.state_dict().values() if tensor.numel()}
    assert not pointers & {tensor.data_ptr() for tensor in result.model.state_dict().values() if tensor.numel()}


def test_inplace_changes_the_very_model(small: nn.Module, tokens: list[torch.Tensor]) -> None:
    """With inplace the given object is returned, and computes what the copy would."""
    copied = mq.Quantizer(pipeline()).run(small).model
    bias = small.blocks[0].up.bias
    reference_outside_the_tree = small.blocks[0].up
    result = mq.Quantizer(pipeline()).run(small, inplace=True)
    assert result.model is small
    assert isinstance(reference_outside_the_tree, mq.Int4Linear)
    assert small.blocks[0].up.bias is bias
    small.eval(), copied.eval()
    assert torch.equal(small(tokens[0]), copied(tokens[0]))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("phase", ["plan", "prepare", "requires", "run", "ensures"])
def test_any_exception_leaves_the_model_as_it_was(
    small: nn.Module, tokens: list[torch.Tensor], unchanged: Any, phase: str, error: BaseException, inplace: bool
) -> None:
    """Whatever phase of the last pass fails, and even on Ctrl-C, the user's model is bit-identical."""
    check = unchanged(small)
    with pytest.raises(type(error)):
        mq.Quantizer(pipeline(Failing(phase, error), tokens=tokens)).run(small, inplace=inplace)
    check()


@pytest.mark.parametrize("inplace", [False, True])
def test_an_exception_while_converting_leaves_the_model_as_it_was(
    small: nn.Module, unchanged: Any, monkeypatch: pytest.MonkeyPatch, inplace: bool
) -> None:
    """A failure in the middle of writing the model undoes the layers that were written, of whatever kind."""
    real, calls = PackedLayer.put_into, []

    def flaky(layer: PackedLayer, module: nn.Module) -> None:
        calls.append(module)
        real(layer, module)
        if len(calls) == len(kinds):
            raise MemoryError

    kinds = [nn.Linear(64, 64), nn.LSTM(16, 32), nn.MultiheadAttention(32, 2), nn.Conv1d(16, 32, 3)]
    kinds.append(parametrizations.weight_norm(nn.Linear(64, 64)))
    kinds.append(nn.utils.spectral_norm(nn.Linear(64, 64)))
    model = nn.ModuleList([small, *kinds])
    monkeypatch.setattr(PackedLayer, "put_into", flaky)
    check = unchanged(model)
    with pytest.raises(MemoryError):
        mq.Quantizer([mq.SkipSelectionPass(mq.NameRule("0")), mq.Int4PackPass()]).run(model, inplace=inplace)
    assert len(calls) == len(kinds)
    check()


def test_errors_keep_their_type_and_say_where(small: nn.Module) -> None:
    """An exception in a pass carries a note with pass, phase, layer and the passes before it."""

    @attrs.frozen
    class Picky(mq.Pass):
        follows = (mq.Int4PackPass,)

        def run(self, context: mq.QuantContext) -> None:
            for layer in context.quantized_layers():
                if layer.name == "blocks.1.up":
                    raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError) as caught:
        mq.Quantizer([*pipeline(), Picky()]).run(small)
    note = "\n".join(caught.value.__notes__)
    for part in ("Picky.run", "'blocks.1.up'", "pass 5 of 5", "SkipSelectionPass, Int4PackPass, ValidationPass"):
        assert part in note


ORDER_ERRORS = [
    ([], "no pass packs anything"),
    ([mq.Int4PackPass()], "Int4PackPass needs SkipSelectionPass: put one before it, at position 1"),
    ([mq.Int4PackPass(), mq.SkipSelectionPass()], "Int4PackPass stands before SkipSelectionPass: move it behind"),
    ([mq.SkipSelectionPass(), mq.ValidationPass()], "ValidationPass needs PackPass"),
    ([mq.SkipSelectionPass(), mq.Int4PackPass(), mq.CalibrationPass([])], "Int4PackPass stands before CalibrationPass"),
    (
        [mq.SkipSelectionPass(), mq.Int4PackPass(), mq.AccuracyWarningPass(), mq.ValidationPass()],
        "AccuracyWarningPass stands before ValidationPass",
    ),
    ([mq.SkipSelectionPass(), mq.SkipSelectionPass(), mq.Int4PackPass()], "SkipSelectionPass is there twice"),
    ([mq.SkipSelectionPass(), mq.Int4PackPass(), mq.Int4PackPass(32)], "Int4PackPass is there twice"),
    (
        [mq.SkipSelectionPass(), mq.Int8PackPass(activations="static"), mq.CalibrationPass([])],
        "Int8PackPass stands before CalibrationPass",
    ),
    (
        [mq.SkipSelectionPass(), mq.CalibrationPass([]), mq.Int4PackPass(), mq.BudgetPass()],
        "BudgetPass stands behind PackPass: move it before",
    ),
    ([mq.SkipSelectionPass(), mq.Int8PackPass(activations="static")], "Int8PackPass needs CalibrationPass"),
    ([mq.SkipSelectionPass(), mq.Int4PackPass], "pass 2 is the class Int4PackPass: give an instance"),
    ([mq.SkipSelectionPass(), "pack"], "pass 2 is 'pack'"),
    (None, "give a list of passes"),
]


@pytest.mark.parametrize(("passes", "text"), ORDER_ERRORS)
def test_order_is_checked_when_built(passes: Any, text: str) -> None:
    """Missing, misplaced, doubled and foreign passes are refused with the way out, before any model is seen."""
    with pytest.raises(mq.ConfigError, match=text):
        mq.Quantizer(passes)


def test_all_order_problems_are_told_at_once() -> None:
    """Two mistakes give one error that names both."""
    with pytest.raises(mq.ConfigError) as caught:
        mq.Quantizer([mq.ValidationPass(), mq.AccuracyWarningPass()])
    assert "ValidationPass needs PackPass" in str(caught.value)
    assert "AccuracyWarningPass needs PackPass" in str(caught.value)


def test_a_pass_without_work_is_refused() -> None:
    """A pass that defines neither run nor plan would silently do nothing."""

    class Idle(mq.Pass):
        pass

    with pytest.raises(mq.ConfigError, match=r"Idle does nothing: define run\(self, context\)"):
        mq.Quantizer([*pipeline(), Idle()])


def test_registry_must_be_a_registry() -> None:
    """A plugin manager in place of its registry is refused."""
    with pytest.raises(mq.ConfigError, match="registry="):
        mq.Quantizer(pipeline(), registry=mq.PluginManager(discover=False))


def test_deciding_after_the_plan_is_refused(small: nn.Module) -> None:
    """A pass that changes a decision in run() is an error that says so."""

    class Late(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            context.decide(mq.Decision("embed", mq.Action.QUANTIZE, "late"))

    with pytest.raises(mq.PassError, match=r"the plan is final.*'embed'"):
        mq.Quantizer([*pipeline(), Late()]).run(small)


@pytest.mark.parametrize(("layer", "text"), [("lm_head", "decided already"), ("nowhere", "no layer is called")])
def test_bad_decisions_are_refused(small: nn.Module, layer: str, text: str) -> None:
    """Two answers for a layer, or an answer for no layer, are errors of the pass."""

    class Meddling(mq.Pass):
        def plan(self, context: mq.QuantContext) -> None:
            context.decide(mq.Decision(layer, mq.Action.SKIP, "again"))

    with pytest.raises(mq.PassError, match=text):
        mq.Quantizer([*pipeline(), Meddling()]).plan(small)


@attrs.frozen
class ClipOutliersPass(mq.Pass):
    """Clamp the largest weights before packing: the example of the documentation."""

    follows = (mq.SkipSelectionPass,)
    quantile: float = 0.99

    def run(self, context: mq.QuantContext) -> None:
        for layer in context.quantized_layers():
            weight = context.weight(layer.name)
            limit = weight.abs().flatten().quantile(self.quantile)
            context.replace_weight(layer.name, weight.clamp(-limit, limit))


def test_a_pass_can_replace_weights_before_packing(small: nn.Module, unchanged: Any) -> None:
    """A user's pass changes what is packed, not the model, and the damage is measured against the model."""
    check = unchanged(small)
    skips, pack, *rest = pipeline()
    plain = mq.Quantizer([skips, pack, *rest]).run(small)
    clipped = mq.Quantizer([skips, ClipOutliersPass(0.9), pack, *rest]).run(small)
    check()
    weight = small.blocks[0].up.weight.detach()
    limit = weight.abs().flatten().quantile(0.9)
    assert clipped.model.blocks[0].up.weight.abs().max() <= limit * 1.05
    assert clipped.info.sqnr_db < plain.info.sqnr_db - 3


def test_replacing_a_weight_wrongly_is_refused(small: nn.Module) -> None:
    """Another shape, or a layer that is packed already, is an error of the pass that names the layer."""

    class Wrong(mq.Pass):
        def run(self, context: mq.QuantContext) -> None:
            context.replace_weight("blocks.0.up", torch.zeros(2, 2))

    skips, pack, *rest = pipeline()
    with pytest.raises(mq.PassError, match=r"'blocks\.0\.up' has shape \(2, 2\), not \(200, 96\)"):
        mq.Quantizer([skips, Wrong(), pack, *rest]).run(small)
    with pytest.raises(mq.PassError, match=r"'blocks\.0\.up' is packed already"):
        mq.Quantizer([skips, pack, Wrong(), *rest]).run(small)


def test_a_model_without_quantizable_layers_is_refused_with_all_reasons() -> None:
    """The error lists every layer with its reason."""
    model = nn.Sequential(nn.GroupNorm(8, 1024), nn.LayerNorm(64), nn.Conv1d(8, 2, 3))
    with pytest.raises(mq.InputError) as caught:
        mq.Quantizer(pipeline()).run(model)
    text = str(caught.value)
    assert "no layer of the model can be quantized" in text
    assert "unsupported 0: GroupNorm has no weight matrix" in text
    assert "skip        1: type is LayerNorm" in text
    assert "skip        2: 50 parameters, fewer than 512" in text
    assert caught.value.layers == ("0", "1", "2")


def test_a_model_without_parameters_is_refused() -> None:
    """There is nothing to do for a ReLU."""
    with pytest.raises(mq.InputError, match="no parameters at all"):
        mq.Quantizer(pipeline()).run(nn.ReLU())


def test_layers_that_no_pass_takes_are_unsupported(small: nn.Module) -> None:
    """Without a decision by any pass a layer is told apart, not dropped."""

    @attrs.frozen
    class NothingPass(mq.PackPass):
        @property
        def scheme(self) -> mq.Scheme:
            return mq.Scheme()

        def run(self, context: mq.QuantContext) -> None:
            """Pack nothing."""

        def plan(self, context: mq.QuantContext) -> None:
            """Take nothing."""

    decisions = mq.Quantizer([mq.SkipSelectionPass(), NothingPass()]).plan(small)
    assert {decision.action for decision in decisions} == {mq.Action.UNSUPPORTED}
    assert {decision.reason for decision in decisions} == {"no pass of this pipeline packs it"}
    assert {decision.remedy for decision in decisions} == {"add a pass that does"}


def test_planned_but_unpacked_layers_are_an_error(small: nn.Module) -> None:
    """A packing pass that forgets a layer is caught by its own ensures()."""

    @attrs.frozen
    class Forgetful(mq.Int4PackPass):
        def run(self, context: mq.QuantContext) -> None:
            super().run(context)
            context.packed.pop("blocks.1.up")

    with pytest.raises(mq.PassError, match=r"not packed although planned: 'blocks\.1\.up'"):
        mq.Quantizer([mq.SkipSelectionPass(), Forgetful()]).run(small)


def test_root_level_linear() -> None:
    """A bare Linear is packed too, in a copy and in place."""
    linear = nn.Linear(64, 32)
    result = mq.quantize(linear, accuracy_warning="ignore", plugins=False)
    assert isinstance(result.model, mq.Int4Linear)
    assert type(linear) is nn.Linear
    assert mq.quantize(linear, inplace=True, accuracy_warning="ignore", plugins=False).model is linear
    assert isinstance(linear, mq.Int4Linear)


def test_models_that_cannot_be_copied_get_the_way_out() -> None:
    """A model that refuses deepcopy is told to use inplace, which works."""

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("not me")

    model = nn.Sequential(Stubborn(64, 64))
    with pytest.raises(mq.InputError, match=r"cannot be copied.*inplace=True"):
        mq.quantize(model, accuracy_warning="ignore", plugins=False)
    mq.quantize(model, inplace=True, accuracy_warning="ignore", plugins=False)
    assert isinstance(model[0], mq.Int4Linear)


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(2, 70), min_size=2, max_size=4), group_size=st.integers(1, 80), symmetric=st.booleans()
)
def test_report_covers_all_parameters(widths: list[int], group_size: int, symmetric: bool) -> None:
    """Whatever the shapes, the records own every parameter and the bytes are those of real buffers."""
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    result = mq.quantize(
        model,
        group_size=group_size,
        symmetric=symmetric,
        skip_param_threshold=0,
        accuracy_warning="ignore",
        plugins=False,
    )
    assert sum(record.parameters for record in result.report.layers) == sum(p.numel() for p in model.parameters())
    held = sum(tensor.numel() * tensor.element_size() for tensor in result.model.state_dict().values())
    assert result.report.quantized_bytes == held
    assert sum(record.bytes_after for record in result.report.layers) == held
