"""Measure what was lost, and check that every packed layer holds what it should."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from monoquant.context import QuantContext
from monoquant.errors import PassError, ValidationError, quoted
from monoquant.measurement import is_finite, measure_layer, survives_saving
from monoquant.observers import InputSample
from monoquant.passes.base import PackPass, Pass
from monoquant.passes.calibration import CalibrationPass
from monoquant.report import ValidationResult
from monoquant.report.info import MEBIBYTE
from monoquant.summary import headline_sqnr, model_bytes
from monoquant.values import Finding, Severity
from monoquant.verdict import policy_validator

_CODES, _SAVING, _RANGE = "codes-differ", "saving-failed", "range-invalid"
_MESSAGES = {
    _CODES: "layer {name!r}: the packed weight does not unpack to the codes that were chosen for it",
    _SAVING: "layer {name!r}: the packed weight does not survive saving and loading",
    _RANGE: "layer {name!r}: the dequantized weight is not finite in the layer's dtype",
}


@attrs.frozen
class ValidationPass(Pass):
    """Measure the SQNR of weights and, where calibration saw inputs, of outputs; check packing, saving and ranges.

    Args:
        on_failure: What to do when a layer fails a check: ``"error"`` (default) raises, ``"warn"`` and ``"ignore"``
            leave it to the findings and ``ValidationResult.errors``.
        sample_rows: Input rows per layer to measure outputs on; default 256. Memory: rows * in_features per layer.
    """

    follows: ClassVar[tuple[type[Pass], ...]] = (PackPass,)
    after: ClassVar[tuple[type[Pass], ...]] = (CalibrationPass,)
    single: ClassVar[bool] = True

    on_failure: Literal["error", "warn", "ignore"] = attrs.field(default="error", validator=policy_validator)
    sample_rows: int = attrs.field(default=256)

    def __attrs_post_init__(self) -> None:
        InputSample(self.sample_rows)  # refuses bad settings now rather than in the run

    def prepare(self, context: QuantContext) -> None:
        context.want(InputSample(self.sample_rows))

    def requires(self, context: QuantContext) -> None:
        missing = [layer.name for layer in context.quantized_layers() if layer.name not in context.packed]
        if missing:
            raise PassError(f"not packed: {quoted(missing)}", layers=missing)

    def run(self, context: QuantContext) -> None:
        failures: list[tuple[str, str]] = []
        for layer in context.quantized_layers():
            name = layer.name
            packed = context.packed[name]
            sample = context.samples.get(name)
            context.measurements[name] = measure_layer(context.original_weight(name), packed.weight, sample)
            outcomes = {
                _CODES: packed.weight.digest() == packed.digest,
                _SAVING: survives_saving(packed.weight),
                _RANGE: is_finite(packed.weight),
            }
            failures += [(code, name) for code, passed in outcomes.items() if not passed]
        context.validation = _result(context, failures)
        context.report([_finding(code, name) for code, name in failures])
        if failures and self.on_failure == "error":
            layers = tuple(dict.fromkeys(name for _, name in failures))
            message = "validation failed:\n" + "\n".join(context.validation.errors)
            raise ValidationError(message, layers=layers, result=context.validation)


def _result(context: QuantContext, failures: list[tuple[str, str]]) -> ValidationResult:
    before, after = model_bytes(context)
    failed_codes = {code for code, _ in failures}
    return ValidationResult(
        sqnr_db=headline_sqnr(context.measurements.values()),
        original_size_mb=before / MEBIBYTE,
        quantized_size_mb=after / MEBIBYTE,
        compression_ratio=before / max(after, 1),
        load_test_passed=_SAVING not in failed_codes,
        weight_range_valid=_RANGE not in failed_codes,
        errors=[_MESSAGES[code].format(name=name) for code, name in failures],
    )


def _finding(code: str, name: str) -> Finding:
    remedy = "Do not ship this result; a pass changed the packed weight, or memory is faulty."
    if code == _RANGE:
        remedy = "Keep it in float, or convert the model to a dtype with a larger range, such as bfloat16."
    return Finding(code, Severity.CRITICAL, f"CRITICAL: {_MESSAGES[code].format(name=name)}.", name, remedy)
