"""Measure what was lost, and check that every packed layer holds what it should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import attrs

from monoquant.comparison import Comparison
from monoquant.context import QuantContext
from monoquant.errors import PassError, ValidationError, quoted
from monoquant.measurement import (
    Measurement,
    answer,
    is_finite,
    measure_product,
    measure_weight,
    multiplies_as_it_should,
    survives_saving,
)
from monoquant.modules.integer_compute import IntegerCompute
from monoquant.modules.kernel_compute import uses_kernels
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.reparametrized import refresh
from monoquant.numerics.metrics import Energy, measure
from monoquant.observers import CallSample, CallSampler, InputSample, Request, RowSampler
from monoquant.passes.base import Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.passes.pack import PackPass
from monoquant.report import ValidationResult
from monoquant.report.info import MEBIBYTE
from monoquant.restoring import undisturbed
from monoquant.summary import headline_sqnr, model_bytes
from monoquant.values import Finding, Severity
from monoquant.verdict import policy_validator

CODES, SAVING, RANGE, PRODUCT = "codes-differ", "saving-failed", "range-invalid", "product-differs"
_MESSAGES = {
    CODES: "layer {name!r}: the packed weight does not unpack to the codes that were chosen for it",
    SAVING: "layer {name!r}: the packed weight does not survive saving and loading",
    RANGE: "layer {name!r}: the dequantized weight is not finite in the layer's dtype",
    PRODUCT: "layer {name!r}: its kernel multiplies to something else than the dequantized weight does",
}


def _comparison(given: Any) -> Comparison | None:
    return given if given is None or isinstance(given, Comparison) else Comparison(given)


@attrs.frozen
class ValidationPass(Pass):
    """Measure the SQNR of weights and, where calibration saw inputs, of outputs; check packing, saving and ranges.

    Args:
        on_failure: What to do when a layer fails a check: ``"error"`` (default) raises, ``"warn"`` and ``"ignore"``
            leave it to the findings and ``ValidationResult.errors``.
        sample_rows: Input rows per layer to measure the outputs of products on; default 256. Memory: rows * in_features
            per layer.
        sample_bytes: Bytes of inputs per layer to measure the outputs of other layers on (convolutions, attention,
            recurrent layers, embeddings, ...); default 4 MiB. A single sample is used even if it is larger.
        compare: Data to compare the whole model's answers on, as a Comparison or as batches; default None.
    """

    follows: ClassVar[tuple[type[Pass], ...]] = (PackPass,)
    after: ClassVar[tuple[type[Pass], ...]] = (CalibrationPass,)
    single: ClassVar[bool] = True

    on_failure: Literal["error", "warn", "ignore"] = attrs.field(default="error", validator=policy_validator)
    sample_rows: int = 256
    sample_bytes: int = 1 << 22
    compare: Comparison | None = attrs.field(default=None, converter=_comparison)

    def __attrs_post_init__(self) -> None:
        InputSample(self.sample_rows, 1)  # refuses bad settings now rather than in the run
        CallSample(self.sample_bytes)

    def prepare(self, context: QuantContext) -> None:
        for layer in context.quantized_layers():
            context.want(*self._probe(layer.name, context))

    def _probe(self, layer: str, context: QuantContext) -> tuple[str, Request[Any]]:
        """The module whose calls show a layer's outputs, and what to remember of them."""
        packable = context.packable(layer)
        where = context.heard_at(layer)
        if where != layer or not packable.adapter.takes_rows:
            return where, CallSample(self.sample_bytes)
        (form,) = packable.forms.values()
        return layer, InputSample(self.sample_rows, form.columns)

    def requires(self, context: QuantContext) -> None:
        missing = [layer.name for layer in context.quantized_layers() if layer.name not in context.packed]
        if missing:
            raise PassError(f"not packed: {quoted(missing)}", layers=missing)

    def run(self, context: QuantContext) -> None:
        failures: list[tuple[str, str]] = []
        with undisturbed(context.model):
            for module in context.model.modules():
                refresh(module)
            for layer in context.quantized_layers():
                context.measurements[layer.name] = self._measure(layer.name, context)
                failures += [(code, layer.name) for code in _failed_checks(layer.name, context)]
        if self.compare is not None:
            context.comparison = self.compare.run(context)
            context.report([self.compare.finding(context.comparison)])
        self.conclude(context, failures)

    def conclude(self, context: QuantContext, failures: Sequence[tuple[str, str]]) -> None:
        """Tell what was found, and raise if that is asked for.

        Args:
            context: Shared state; all layers are measured.
            failures: Failed checks, each with its layer.

        Raises:
            ValidationError: When a check failed and ``on_failure="error"``.
        """
        context.validation = _result(context, failures)
        context.report([_finding(code, name) for code, name in failures])
        if failures and self.on_failure == "error":
            layers = tuple(dict.fromkeys(name for _, name in failures))
            message = "validation failed:\n" + "\n".join(context.validation.errors)
            raise ValidationError(message, layers=layers, result=context.validation)

    def _measure(self, layer: str, context: QuantContext) -> Measurement:
        where, request = self._probe(layer, context)
        packed, observer = context.packed[layer], context.observer(where, request)
        sample = observer.result() if isinstance(observer, RowSampler) else None
        in_integers = issubclass(packed.mixin, IntegerCompute)
        originals = {name: context.rescaled_weight(layer, name) for name in packed.weights}
        measured = Measurement()
        for name, weight in packed.weights.items():
            inputs = None if in_integers or sample is None else context.rescaling.inputs((layer, name), sample)
            change = context.bias_change(layer, name, packed.biases)
            measured += measure_weight(originals[name], weight, inputs, change)
        if sample is not None and in_integers:
            matrix = packed.weights["weight"].form.to_matrix(originals["weight"])
            product = measure_product(matrix, packed.detached(context.module(layer)), sample)
            return attrs.evolve(measured, output=product, rows=len(sample))
        if isinstance(observer, CallSampler):
            output, rows = _measure_calls(packed, where, layer, observer, context)
            return attrs.evolve(measured, output=output, rows=rows)
        return measured


def _measure_calls(
    packed: PackedLayer, where: str, layer: str, seen: CallSampler, context: QuantContext
) -> tuple[Energy | None, int]:
    """Energies of what the module answers to the calls that were seen, and the number of samples in them."""
    module, packed = context.module(where), _on_own_inputs(packed, layer, context)
    if "forward" in vars(module):
        context.report([_not_replayed(layer, "its forward belongs to the object, and would run the float module")])
        return None, 0
    owned = layer.removeprefix(where).lstrip(".")
    twin = packed.detached_owner(module, owned) if owned else packed.detached(module)
    energy, samples = Energy(), 0
    for call in seen.calls:
        try:
            reference = answer(module, call)
        except Exception as error:  # whatever a forward needs besides its arguments may be gone by now
            context.report([_not_replayed(layer, f"{type(error).__name__}: {error}")])
            return None, 0
        approximation = answer(twin, call)
        if reference is not None and approximation is not None:
            energy += measure(reference, approximation)
            samples += len(reference) if reference.dim() else 1
    return (energy, samples) if samples else (None, 0)


def _on_own_inputs(packed: PackedLayer, layer: str, context: QuantContext) -> PackedLayer:
    """The layer as it answers calls of the float model: without factors that something else divides inputs by."""
    scaled = {name for name in packed.weights if (layer, name) in context.rescaling.columns}
    if not scaled:
        return packed
    undone = {
        name: context.rescaling.undone((layer, name), weight.dequantize(), context.packable(layer).forms[name])
        for name, weight in packed.weights.items()
        if name in scaled
    }
    others = {name: weight for name, weight in packed.weights.items() if name not in scaled}
    return attrs.evolve(packed, weights=others, biases={**packed.biases, **undone})


def _not_replayed(layer: str, reason: str) -> Finding:
    message = f"The output of layer {quoted([layer])} is not measured: its calls cannot be repeated ({reason})."
    return Finding("output-not-measured", Severity.INFO, message, layer, "Judge the whole model's output instead.")


def _failed_checks(layer: str, context: QuantContext) -> list[str]:
    packed = context.packed[layer]
    weights = packed.weights
    # A finite error of a finite weight leaves no other values to look for.
    known_finite = math.isfinite(context.measurements[layer].weight.noise)
    outcomes = {
        CODES: all(packed.intended[name].holds(weight) for name, weight in weights.items()),
        SAVING: all(map(survives_saving, weights.values())),
        RANGE: known_finite or all(map(is_finite, weights.values())),
    }
    if uses_kernels(packed.mixin):
        outcomes[PRODUCT] = all(map(multiplies_as_it_should, weights.values()))
    return [code for code, passed in outcomes.items() if not passed]


def _result(context: QuantContext, failures: Sequence[tuple[str, str]]) -> ValidationResult:
    before, after = model_bytes(context)
    failed_codes = {code for code, _ in failures}
    return ValidationResult(
        sqnr_db=headline_sqnr(context.measurements.values()),
        original_size_mb=before / MEBIBYTE,
        quantized_size_mb=after / MEBIBYTE,
        compression_ratio=before / max(after, 1),
        load_test_passed=SAVING not in failed_codes,
        weight_range_valid=RANGE not in failed_codes,
        errors=[_MESSAGES[code].format(name=name) for code, name in failures],
    )


def _finding(code: str, name: str) -> Finding:
    remedy = "Do not ship this result; a pass changed the packed weight, or memory is faulty."
    if code == RANGE:
        remedy = "Keep it in float, or convert the model to a dtype with a larger range, such as bfloat16."
    if code == PRODUCT:
        remedy = "Block the plugin that brings the kernel, and tell its authors; exact=True may choose another one."
    return Finding(code, Severity.CRITICAL, f"CRITICAL: {_MESSAGES[code].format(name=name)}.", name, remedy)
