"""From the context of a run to its frozen report and info."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib import metadata
from statistics import median

import torch
from torch import Tensor

from monoquant.context import QuantContext
from monoquant.measurement import Measurement
from monoquant.modules.packed_layer import PackedLayer
from monoquant.modules.reparametrized import replaced_tensors
from monoquant.numerics.memory import stored_bytes
from monoquant.numerics.metrics import Energy
from monoquant.report import LayerReport, QuantReport
from monoquant.source import joined, model_tensors, own_tensors
from monoquant.values import Decision, Layer


def build_report(context: QuantContext) -> QuantReport:
    """Freeze what a run has found so far.

    Args:
        context: The run; every layer must be decided.

    Returns:
        The report; equal contexts give equal reports.
    """
    measured = context.measurements.values()
    pooled = sum((measurement.weight for measurement in measured), Energy())
    before, after = model_bytes(context)
    return QuantReport(
        scheme=context.scheme,
        layers=tuple(_layer_report(layer, context) for layer in context.layers),
        findings=tuple(sorted(context.findings, key=lambda finding: -finding.severity)),
        original_bytes=before,
        quantized_bytes=after,
        pooled_weight_sqnr_db=pooled.sqnr_db if context.measurements else None,
        calibration=context.calibration,
        validation=context.validation,
        versions=_versions(context),
        tradeoff=context.tradeoff,
        comparison=context.comparison,
        recipe=context.recipe,
    )


def model_bytes(context: QuantContext) -> tuple[int, int]:
    """Bytes of all parameters and buffers before and after, shared memory counted once.

    Args:
        context: The run, after packing.
    """
    packed = [buffer for layer in context.packed.values() for buffer in _packed_buffers(layer)]
    return stored_bytes(model_tensors(context.model)), stored_bytes([*_tensors_that_stay(context), *packed])


def _packed_buffers(layer: PackedLayer) -> Iterator[Tensor]:
    for part in (*layer.weights.values(), *layer.extras.values()):
        yield from part.buffers()


def _tensors_that_stay(context: QuantContext) -> Iterator[Tensor]:
    gone = {joined(name, key) for name in context.packed for key in _replaced(name, context)}
    for name, tensor in (*context.model.named_parameters(), *context.model.named_buffers()):
        if name not in gone:
            yield tensor


def _replaced(layer: str, context: QuantContext) -> set[str]:
    return replaced_tensors(context.module(layer), context.packed[layer].weights)


def headline_sqnr(measurements: Iterable[Measurement]) -> float | None:
    """The one SQNR of a model, in dB.

    Args:
        measurements: One per quantized layer.

    Returns:
        The median of the layer outputs where outputs were measured (exact ones left out, unless all are exact), else
        the pooled weight SQNR; nan if one is nan; None if nothing was measured.
    """
    found = list(measurements)
    if not found:
        return None
    outputs = [measurement.output.sqnr_db for measurement in found if measurement.output is not None]
    if not outputs:
        return sum((measurement.weight for measurement in found), Energy()).sqnr_db
    broken = [value for value in outputs if value != value]
    inexact = [value for value in outputs if value != math.inf]
    return broken[0] if broken else median(inexact or outputs)


def _layer_report(layer: Layer, context: QuantContext) -> LayerReport:
    decision: Decision = context.plan[layer.name]
    tensors = own_tensors(context.module(layer.name))
    before = after = _own_bytes(tensors.values())
    packed = context.packed.get(layer.name)
    if packed is not None:
        gone = _replaced(layer.name, context)
        after = _own_bytes(_packed_buffers(packed)) + _own_bytes(
            tensor for name, tensor in tensors.items() if name not in gone
        )
    measurement = context.measurements.get(layer.name)
    output = measurement.output if measurement else None
    return LayerReport(
        layer=layer.name,
        kind=layer.type.__name__,
        shape=layer.shape,
        parameters=layer.parameters,
        action=decision.action,
        reason=decision.reason,
        bytes_before=before,
        bytes_after=after,
        dtype=layer.dtype,
        rule=decision.rule,
        origin=decision.origin,
        remedy=decision.remedy,
        scheme=decision.scheme,
        weights=decision.weights,
        matrices=() if packed is None else tuple((one.rows, one.columns) for one in packed.weights.values()),
        compute=decision.compute,
        algorithm=context.algorithms.get(layer.name, ""),
        weight_sqnr_db=measurement.weight.sqnr_db if measurement else None,
        reference_sqnr_db=measurement.reference.sqnr_db if measurement else None,
        output_sqnr_db=output.sqnr_db if output else None,
        sample_rows=measurement.rows if measurement else 0,
        input_rows=context.input_rows.get(layer.name),
        aliases=layer.aliases,
    )


def _own_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _versions(context: QuantContext) -> tuple[tuple[str, str], ...]:
    plugins = [(plugin.name, plugin.version or "unknown") for plugin in context.registry.plugins]
    return (("monoquant", metadata.version("monoquant")), ("torch", str(torch.__version__)), *plugins)
