"""Judge a quantized model against the float model it came from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import attrs
from torch import Tensor, nn

from monoquant.adapters.choice import readable_weights
from monoquant.checks import AccuracyGate, SqnrCheck
from monoquant.errors import AccuracyWarning, InputError, ValidationError, quoted
from monoquant.measurement import Measurement, is_finite, measure_weight, survives_saving
from monoquant.modules.packed_module import PackedModule
from monoquant.numerics.memory import stored_bytes
from monoquant.registry import Registered
from monoquant.report import LayerReport, QuantizationInfo, ValidationResult
from monoquant.report.info import MEBIBYTE, dtype_of
from monoquant.report.wording import texts
from monoquant.source import model_tensors, own_parameters, own_tensors
from monoquant.summary import headline_sqnr
from monoquant.values import BUILT_IN, Action, AnyScheme, Severity
from monoquant.verdict import require_policy, run_checks


@attrs.frozen(eq=False)
class _Pair:
    """A float layer and what became of it."""

    module: nn.Module
    weights: Mapping[str, Tensor]
    packed: PackedModule

    @property
    def scheme(self) -> AnyScheme:
        return next(iter(self.packed.packed_weights().values())).scheme

    def measure(self) -> Measurement:
        packed = self.packed.packed_weights()
        return sum((measure_weight(self.weights[name], packed[name]) for name in packed), Measurement())


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
    measured = {name: pair.measure() for name, pair in pairs.items()}
    packed = {name: pair.packed.packed_weights().values() for name, pair in pairs.items()}
    unsaved = [name for name, weights in packed.items() if not all(map(survives_saving, weights))]
    infinite = [name for name, weights in packed.items() if not all(map(is_finite, weights))]
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


def _pairs(original: nn.Module, quantized: nn.Module) -> dict[str, _Pair]:
    for what, given in (("original", original), ("quantized", quantized)):
        if not isinstance(given, nn.Module):
            raise InputError(f"{what} is a {type(given).__name__}: give the module itself, such as result.model")
    packed = {name: module for name, module in quantized.named_modules() if isinstance(module, PackedModule)}
    if not packed:
        raise InputError("the quantized model has no packed layer: give the model that quantize() returned")
    floats = dict(original.named_modules(remove_duplicate=False))
    pairs, strangers = {}, []
    for name, module in packed.items():
        weights = _float_weights(floats.get(name), module)
        if weights is None:
            strangers.append(name)
        else:
            pairs[name] = _Pair(floats[name], weights, module)
    meta = [name for name, pair in pairs.items() if any(weight.is_meta for weight in pair.weights.values())]
    if meta:
        raise InputError(f"original weights on the meta device: {quoted(meta)}; load real weights first", layers=meta)
    if strangers:
        message = f"packed layers without a float layer of that name and shape: {quoted(strangers)}"
        raise InputError(message, layers=strangers)
    return pairs


def _float_weights(module: nn.Module | None, packed: PackedModule) -> dict[str, Tensor] | None:
    """The float weights that correspond to packed ones; None if some do not."""
    if module is None or isinstance(module, PackedModule):
        return None
    found = readable_weights(module)
    shapes = {name: weight.form.shape for name, weight in packed.packed_weights().items()}
    if any(name not in found or tuple(found[name].shape) != shape for name, shape in shapes.items()):
        return None
    return {name: found[name] for name in shapes}


def _info(pairs: dict[str, _Pair], measured: dict[str, Measurement]) -> QuantizationInfo:
    records = tuple(_record(name, pair, measured[name]) for name, pair in pairs.items())
    scheme = next(iter(pairs.values())).scheme
    return QuantizationInfo(list(pairs), [], 0, dtype_of(scheme), scheme.symmetric, layers=records)


def _record(name: str, pair: _Pair, measurement: Measurement) -> LayerReport:
    weights = pair.packed.packed_weights()
    return LayerReport(
        layer=name,
        kind=type(pair.module).__name__,
        shape=next(iter(weights.values())).form.shape,
        parameters=sum(parameter.numel() for parameter in own_parameters(pair.module).values()),
        action=Action.QUANTIZE,
        reason="packed",
        bytes_before=stored_bytes(own_tensors(pair.module).values()),
        bytes_after=stored_bytes(_packed_tensors(pair.packed)),
        dtype=next(iter(weights.values())).dtype,
        scheme=pair.scheme,
        weights=tuple(weights),
        matrices=tuple((one.rows, one.columns) for one in weights.values()),
        weight_sqnr_db=measurement.weight.sqnr_db,
        reference_sqnr_db=measurement.reference.sqnr_db,
    )


def _packed_tensors(module: PackedModule) -> Iterator[Tensor]:
    yield from own_tensors(module).values()
    for weight in module.packed_weights().values():
        yield from weight.buffers()
