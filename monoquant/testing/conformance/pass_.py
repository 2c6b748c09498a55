"""The contract of passes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from monoquant.context import QuantContext
from monoquant.passes.base import Pass
from monoquant.quantizer import Quantizer, QuantResult
from monoquant.testing import zoo
from monoquant.testing.assertions import assert_pass
from monoquant.testing.conformance.base import Conformance, check_is_frozen, require
from monoquant.testing.conformance.findings import check_finding
from monoquant.testing.pipeline import pipeline_for
from monoquant.testing.unchanged import ModelState
from monoquant.testing.zoo import Specimen

_BATCHES = 8
_LEAVE_ALONE = (
    "read the model through the context, give new weights to context.replace_weight, and undo in a 'finally' what "
    "cannot be avoided; monoquant.restoring.undisturbed runs a model without a trace"
)
_NOTHING_STAYS = "keep what a run needs in the context or in local variables, never in the pass or in a global"


class PassConformance(Conformance):
    """Tests every pass must pass, in the shortest pipeline that it declares to need.

    Example::

        class TestClipOutliersPass(PassConformance):
            pass_ = ClipOutliersPass(quantile=0.99)

    Attributes:
        pass_: The pass to test.
        specimens: The models that it is run on: names of the zoo, or Specimens of your own; default: a Linear, one with
            ragged groups, a transformer layer, tied weights, a recurrent layer, stacked experts. Leave out those of
            which the pass leaves nothing to quantize.
        passes: Passes to use in the pipeline instead of those that would be built; default none. What follows
            CalibrationPass is given data that goes into the model.
    """

    pass_: Pass
    specimens: ClassVar[Sequence[str | Specimen]] = (
        "Linear",
        "Linear of ragged groups",
        "TransformerEncoderLayer",
        "tied head",
        "GRU",
        "experts",
    )
    passes: ClassVar[Sequence[Pass]] = ()

    def test_it_is_a_frozen_value(self) -> None:
        """Its settings cannot be exchanged, so that it can be used for any number of models."""
        check_is_frozen(self._pass, "the pass", hashable=False)

    def test_it_declares_its_place(self) -> None:
        """``follows``, ``after`` and ``before`` are tuples of passes, class variables, and a pipeline can be built."""
        fields = {field.name for field in attrs.fields(type(self._pass))}
        for name in ("follows", "after", "before"):
            declared = getattr(self._pass, name)
            classes = isinstance(declared, tuple) and all(
                isinstance(kind, type) and issubclass(kind, Pass) for kind in declared
            )
            remedy = f"write '{name}: ClassVar[tuple[type[Pass], ...]] = (SkipSelectionPass,)', or leave the type out"
            broken = f"{name} of the pass {self._pass!r} is {declared!r}."
            require(classes and name not in fields, broken, remedy)
        Quantizer(pipeline_for(self._pass, self.passes, []))

    def test_it_plans_without_weights(self) -> None:
        """The dry run works on the meta device, decides as with weights, and leaves the model alone."""
        for specimen in self._specimens():
            with _told(specimen):
                model, quantizer = specimen.build(), self._quantizer(specimen)
                with torch.device("meta"):
                    empty = specimen.build()
                states = [(one, ModelState.of(one)) for one in (model, empty)]
                real, dry = quantizer.plan(model), quantizer.plan(empty)
                for one, state in states:
                    self._require_unchanged(one, state, f"planning for {specimen}")
                plans = f"plans {_shown(real)} for {specimen}, and {_shown(dry)} without weights."
                remedy = "decide in plan() from names, types and shapes alone; look at values in run()"
                require(real == dry, f"the pass {self._pass!r} {plans}", remedy)

    def test_it_leaves_the_model_alone(self) -> None:
        """A run changes neither the model nor torch's settings; what was planned is done, and every layer reported."""
        for specimen in self._specimens():
            with _told(specimen), warnings.catch_warnings(action="ignore"):
                model, batches = specimen.build(), _batches(specimen)
                assert_pass(self._pass, model, passes=self.passes, calibration_data=batches)

    def test_it_leaves_the_model_alone_when_a_later_pass_fails(self) -> None:
        """Even where the model was to be changed in place, it stays bit for bit what it was."""
        for specimen in self._specimens():
            with _told(specimen):
                model = specimen.build()
                quantizer = Quantizer([*self._quantizer(specimen).passes, _Failing()])
                self._run_into(model, quantizer, f"a failed run on {specimen}", inplace=True)

    def test_it_leaves_the_model_alone_when_the_model_fails(self) -> None:
        """A pass that calls the model cleans up behind a forward that raises: hooks, flags, buffers."""
        for specimen in self._specimens():
            with _told(specimen):
                model = specimen.build()
                model.register_forward_pre_hook(_Fuse(calls=2).burn)
                self._run_into(model, self._quantizer(specimen), f"a forward of {specimen} that failed", inplace=False)

    def test_it_can_be_used_again(self) -> None:
        """One pass for several models: the first is quantized again as it was the first time; nothing stays in it."""
        quantizers = [(specimen, self._quantizer(specimen)) for specimen in self._specimens()]
        before = _state(self._pass)
        first, again = _results(quantizers), _results(quantizers)
        for (specimen, _), one, other in zip(quantizers, first, again, strict=True):
            broken = f"the pass {self._pass!r} gives another result for {specimen} the second time."
            require(_same(one, other), broken, f"{_NOTHING_STAYS}; seed what is random")
        require(_state(self._pass) == before, f"running the pass {self._pass!r} changed it.", _NOTHING_STAYS)

    def test_in_place_gives_the_same(self) -> None:
        """A model that is changed in place becomes what the copy would have been."""
        for specimen in self._specimens():
            with _told(specimen):
                quantizer, model = self._quantizer(specimen), specimen.build()
                copied = _result(quantizer, copy.deepcopy(model))
                with warnings.catch_warnings(action="ignore"):
                    changed = quantizer.run(model, inplace=True)
                broken = f"the pass {self._pass!r} gives another result for {specimen} in place."
                require(changed.model is model and _same(copied, changed), broken, _LEAVE_ALONE)

    def test_findings_can_be_acted_on(self) -> None:
        """Each has a stable code, a severity, a message, what to do about it, and a layer that there is."""
        for specimen in self._specimens():
            with _told(specimen):
                report = _result(self._quantizer(specimen), specimen.build()).report
                for finding in report.findings:
                    names = [record.layer for record in report.layers]
                    check_finding(finding, names, f"the pipeline of the pass {self._pass!r}")

    @property
    def _pass(self) -> Pass:
        found: Pass = self.subject("pass_", Pass)
        return found

    def _specimens(self) -> Iterator[Specimen]:
        return (one if isinstance(one, Specimen) else zoo.specimen(one) for one in self.specimens)

    def _quantizer(self, specimen: Specimen) -> Quantizer:
        return Quantizer(pipeline_for(self._pass, self.passes, _batches(specimen)))

    def _run_into(self, model: nn.Module, quantizer: Quantizer, what: str, *, inplace: bool) -> None:
        state = ModelState.of(model)
        try:
            with warnings.catch_warnings(action="ignore"):
                quantizer.run(model, inplace=inplace)
        except Exception as error:
            if not _is_deliberate(error):
                raise
        finally:
            self._require_unchanged(model, state, what)

    def _require_unchanged(self, model: nn.Module, state: ModelState, what: str) -> None:
        found = state.differences(model)
        require(not found, f"{what} with the pass {self._pass!r} changed the model: {', '.join(found)}.", _LEAVE_ALONE)


@contextmanager
def _told(specimen: Specimen) -> Iterator[None]:
    """Say on which model a test failed, whoever raises."""
    try:
        yield
    except Exception as error:
        error.add_note(f"on the suite's model {specimen.name!r}")
        raise


class _DeliberateError(Exception):
    """What the suite itself raises."""


def _is_deliberate(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is the suite's."""
    return error is not None and (isinstance(error, _DeliberateError) or _is_deliberate(error.__cause__))


@attrs.frozen
class _Failing(Pass):
    """The last pass of a pipeline that has done all its work."""

    def run(self, context: QuantContext) -> None:
        raise _DeliberateError


@attrs.define
class _Fuse:
    """A hook that lets some calls pass, and then none."""

    calls: int

    def burn(self, *_: Any) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise _DeliberateError


def _batches(specimen: Specimen) -> list[Any]:
    return [specimen.inputs(seed) for seed in range(_BATCHES)]


def _result(quantizer: Quantizer, model: nn.Module) -> QuantResult:
    with warnings.catch_warnings(action="ignore"):  # a gate may warn, and is meant to
        return quantizer.run(model)


def _results(quantizers: Sequence[tuple[Specimen, Quantizer]]) -> list[QuantResult]:
    results = []
    for specimen, quantizer in quantizers:
        with _told(specimen):
            results.append(_result(quantizer, specimen.build()))
    return results


def _same(one: QuantResult, other: QuantResult) -> bool:
    mine, others = one.model.state_dict(), other.model.state_dict()
    tensors = mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
    return tensors and one.report.to_dict() == other.report.to_dict()


def _state(pass_: Pass) -> str:
    return repr([(field.name, getattr(pass_, field.name)) for field in attrs.fields(type(pass_))])


def _shown(decisions: Sequence[object]) -> str:
    return "; ".join(map(str, decisions))
