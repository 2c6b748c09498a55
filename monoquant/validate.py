"""Judge a quantized model against the float model it came from."""

from __future__ import annotations

import warnings

from torch import nn

from monoquant.checks import AccuracyGate, SqnrCheck
from monoquant.errors import AccuracyWarning, InputError, ValidationError, quoted
from monoquant.measurement import Measurement, is_finite, measure_layer, survives_saving
from monoquant.modules.int4_linear import Int4Linear
from monoquant.numerics.memory import stored_bytes
from monoquant.registry import Registered
from monoquant.report import LayerReport, QuantizationInfo, ValidationResult
from monoquant.report.info import MEBIBYTE
from monoquant.report.wording import texts
from monoquant.source import model_tensors
from monoquant.summary import headline_sqnr
from monoquant.values import BUILT_IN, INT4, Action, Severity
from monoquant.verdict import require_policy, run_checks


def validate_quantization(original: nn.Module, quantized: nn.Module, on_failure: str = "error") -> ValidationResult:
    """Compare every packed layer with its float original, and check that it can be saved and loaded.

    Args:
        original: The float model.
        quantized: A model that :func:`quantize` or :func:`load` made from the same architecture.
        on_failure: What a failed check does: ``"error"`` (default) raises, ``"warn"`` emits an AccuracyWarning,
            ``"ignore"`` only fills ``errors``. A layer with less than 10 dB counts as failed.

    Returns:
        Weight SQNR (pooled, dB), sizes, the outcome of the checks; layers that lost much are named in ``warnings``.

    Raises:
        InputError: When nothing is packed or the two models do not correspond; all layers are named.
        ValidationError: When a check fails and ``on_failure="error"``; every failing layer is named.
    """
    require_policy("on_failure", on_failure)
    pairs = _pairs(original, quantized)
    measured = {name: measure_layer(linear.weight, packed.packed_weight) for name, (linear, packed) in pairs.items()}
    unsaved = [name for name, (_, packed) in pairs.items() if not survives_saving(packed.packed_weight)]
    infinite = [name for name, (_, packed) in pairs.items() if not is_finite(packed.packed_weight)]
    findings = run_checks([Registered(SqnrCheck(), BUILT_IN)], _info(pairs, measured), AccuracyGate())
    broken = [finding for finding in findings if finding.severity is Severity.CRITICAL]
    errors = [f"layer {name!r} does not survive saving and loading" for name in unsaved]
    errors += [f"layer {name!r} has dequantized weights that are not finite" for name in infinite]
    errors += texts(broken)
    before, after = stored_bytes(model_tensors(original)), stored_bytes(model_tensors(quantized))
    result = ValidationResult(
        sqnr_db=headline_sqnr(measured.values()),
        original_size_mb=before / MEBIBYTE,
        quantized_size_mb=after / MEBIBYTE,
        compression_ratio=before / max(after, 1),
        load_test_passed=not unsaved,
        weight_range_valid=not infinite,
        errors=errors,
        warnings=texts(findings),
    )
    failing = dict.fromkeys([*unsaved, *infinite, *(finding.layer or "" for finding in broken)])
    _react(result, tuple(failing), on_failure)
    return result


def _react(result: ValidationResult, failing: tuple[str, ...], on_failure: str) -> None:
    if not result.errors or on_failure == "ignore":
        return
    message = "validation failed:\n" + "\n".join(result.errors)
    if on_failure == "error":
        raise ValidationError(message, layers=failing, result=result)
    warnings.warn(message, AccuracyWarning, stacklevel=3)


def _pairs(original: nn.Module, quantized: nn.Module) -> dict[str, tuple[nn.Linear, Int4Linear]]:
    for what, given in (("original", original), ("quantized", quantized)):
        if not isinstance(given, nn.Module):
            raise InputError(f"{what} is a {type(given).__name__}: give the module itself, such as result.model")
    packed = {name: module for name, module in quantized.named_modules() if isinstance(module, Int4Linear)}
    if not packed:
        raise InputError("the quantized model has no packed layer: give the model that quantize() returned")
    floats = dict(original.named_modules())
    pairs, strangers = {}, []
    for name, module in packed.items():
        linear = floats.get(name)
        if (
            isinstance(linear, nn.Linear)
            and not isinstance(linear, Int4Linear)
            and linear.weight.shape == (module.out_features, module.in_features)
        ):
            pairs[name] = (linear, module)
        else:
            strangers.append(name)
    meta = [name for name, (linear, _) in pairs.items() if linear.weight.is_meta]
    if meta:
        raise InputError(f"original weights on the meta device: {quoted(meta)}; load real weights first", layers=meta)
    if strangers:
        message = f"packed layers without a float Linear of that name and shape: {quoted(strangers)}"
        raise InputError(message, layers=strangers)
    return pairs


def _info(pairs: dict[str, tuple[nn.Linear, Int4Linear]], measured: dict[str, Measurement]) -> QuantizationInfo:
    scheme = next(iter(pairs.values()))[1].packed_weight.scheme
    records = tuple(_record(name, *pairs[name], measured[name]) for name in pairs)
    return QuantizationInfo(list(pairs), [], 0, INT4, scheme.symmetric, layers=records)


def _record(name: str, linear: nn.Linear, packed: Int4Linear, measurement: Measurement) -> LayerReport:
    return LayerReport(
        layer=name,
        kind=type(linear).__name__,
        shape=tuple(linear.weight.shape),
        parameters=sum(parameter.numel() for parameter in linear.parameters()),
        action=Action.QUANTIZE,
        reason="packed",
        bytes_before=stored_bytes(model_tensors(linear)),
        bytes_after=stored_bytes(model_tensors(packed)),
        dtype=packed.packed_weight.dtype,
        scheme=packed.packed_weight.scheme,
        weight_sqnr_db=measurement.weight.sqnr_db,
        reference_sqnr_db=measurement.reference.sqnr_db,
    )
