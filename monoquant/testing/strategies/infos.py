"""Strategies of what warning checks are asked about."""

from __future__ import annotations

import math
from typing import Final, Literal

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from monoquant.checks import AccuracyGate
from monoquant.modules.packed_matrix import storage_bytes
from monoquant.report import LayerReport, QuantizationInfo
from monoquant.report.info import MEBIBYTE, dtype_of
from monoquant.testing.strategies.layers import layers
from monoquant.testing.strategies.schemes import half_schemes, schemes
from monoquant.values import Action, AnyScheme, Layer, Scheme

_TELLING_SQNR: Final = (25.0, 5.0, 15.0, 35.0, 9.999, 10.0, 19.999, 20.0, 0.0)
_NO_FIGURES: Final = (math.nan, math.inf, -math.inf)
_TELLING_SAMPLES: Final = (0, 1, 49, 50, 99, 100, 10_000)


def gates() -> SearchStrategy[AccuracyGate]:
    """Thresholds of the quality gate: the default, others, and both alike.

    Returns:
        A strategy that shrinks towards the default gate.
    """
    pairs = st.tuples(st.floats(-20, 60), st.floats(-20, 60)).map(sorted)
    return st.just(AccuracyGate()) | pairs.map(lambda pair: AccuracyGate(pair[1], pair[0]))


# Strategies that are made once are checked once: that is most of the time that drawing takes.
_SQNR: Final = st.none() | st.sampled_from(_TELLING_SQNR) | st.sampled_from(_NO_FIGURES) | st.floats(-40, 80)
_REFERENCE: Final = st.none() | st.floats(15, 60)
_INPUT_ROWS: Final = st.none() | st.integers(0, 10_000)
_SCHEME: Final[SearchStrategy[AnyScheme]] = schemes() | half_schemes()
_ALGORITHM: Final = st.sampled_from(("round_to_nearest", "gptq"))
_LAYER: Final = layers()
_VECTOR_ACTION: Final = st.sampled_from((Action.SKIP, Action.UNSUPPORTED))
_MATRIX_ACTION: Final = st.sampled_from((Action.SKIP, Action.UNSUPPORTED, Action.QUANTIZE))


def layer_reports() -> SearchStrategy[LayerReport]:
    """Records of layers that were quantized, skipped or unsupported; measured, half measured, or not at all.

    SQNR is None, a figure around the thresholds, inf, -inf or NaN. Names, types and shapes are those of
    :func:`~monoquant.testing.strategies.layers`, sizes fit the scheme.

    Returns:
        A strategy that shrinks towards a layer that was skipped.
    """
    return _layer_reports()


@st.composite
def _layer_reports(draw: DrawFn) -> LayerReport:
    layer = draw(_LAYER)
    action = draw(_MATRIX_ACTION if len(layer.shape) > 1 else _VECTOR_ACTION)
    size = layer.parameters * layer.dtype.itemsize
    record = LayerReport(
        layer.name, layer.type.__name__, layer.shape, layer.parameters, action, "a reason", size, size, layer.dtype
    )
    if action is Action.SKIP:
        return attrs.evolve(record, rule="TypeRule(Embedding)")
    if action is Action.UNSUPPORTED:
        return attrs.evolve(record, remedy="give it a weight matrix")
    return _quantized(draw, record, layer)


def _quantized(draw: DrawFn, record: LayerReport, layer: Layer) -> LayerReport:
    scheme = draw(_SCHEME)
    matrix = (layer.shape[0], math.prod(layer.shape[1:]))
    output = draw(_SQNR)
    return attrs.evolve(
        record,
        bytes_after=_packed_bytes(matrix, scheme) + (layer.parameters - math.prod(matrix)) * layer.dtype.itemsize,
        scheme=scheme,
        weights=("weight",),
        matrices=(matrix,),
        algorithm=draw(_ALGORITHM),
        weight_sqnr_db=draw(_SQNR),
        reference_sqnr_db=draw(_REFERENCE),
        output_sqnr_db=output,
        sample_rows=0 if output is None else 256,
        input_rows=draw(_INPUT_ROWS),
    )


def _packed_bytes(matrix: tuple[int, int], scheme: AnyScheme) -> int:
    return storage_bytes(*matrix, scheme) if isinstance(scheme, Scheme) else math.prod(matrix) * scheme.dtype.itemsize


def infos() -> SearchStrategy[QuantizationInfo]:
    """Summaries of runs: with a record per layer, without any layer, and built by hand from names alone.

    Everything or nothing was quantized, few samples were seen or none, SQNR is None, a figure, inf, -inf or NaN.

    Returns:
        A strategy that shrinks towards a summary of nothing.
    """
    return _infos()


_RECORDS: Final = st.lists(layer_reports(), max_size=6, unique_by=lambda record: record.layer)
_SAMPLES: Final = st.sampled_from(_TELLING_SAMPLES)


@st.composite
def _infos(draw: DrawFn) -> QuantizationInfo:
    records = draw(_RECORDS)
    scheme: AnyScheme = draw(_SCHEME)
    names = {action: [record.layer for record in records if record.action is action] for action in Action}
    sqnr = draw(_SQNR)
    kinds: tuple[Literal["output", "weight"], ...] = ("output", "weight")
    before, after = (sum(sizes) / MEBIBYTE for sizes in _sizes(records))
    by_hand = draw(st.booleans())
    return QuantizationInfo(
        selected_layers=names[Action.QUANTIZE],
        skipped_layers=names[Action.SKIP],
        unsupported_layers=names[Action.UNSUPPORTED],
        calibration_samples_used=draw(_SAMPLES),
        dtype=dtype_of(scheme),
        symmetric=scheme.symmetric,
        sqnr_db=sqnr,
        sqnr_kind=None if sqnr is None else draw(st.sampled_from(kinds)),
        original_size_mb=None if by_hand else before,
        quantized_size_mb=None if by_hand else after,
        compression_ratio=before / after if after and not by_hand else None,
        layers=() if by_hand else tuple(records),
    )


def _sizes(records: list[LayerReport]) -> tuple[list[int], list[int]]:
    return [record.bytes_before for record in records], [record.bytes_after for record in records]
