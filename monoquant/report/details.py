"""What the text form says beyond the summary that is printed: what each layer is, and what it was measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from monoquant.numerics.memory import format_bytes
from monoquant.report.records import LayerReport, ReportData
from monoquant.report.table import aligned, format_db
from monoquant.report.tradeoff import LayerTradeoff

_NOTHING = "-"
_COLUMNS: tuple[tuple[str, Callable[[LayerReport], str]], ...] = (
    ("layer", lambda one: one.name),
    ("kind", lambda one: one.kind),
    ("shape", lambda one: _shape(one.shape)),
    ("parameters", lambda one: str(one.parameters)),
    ("dtype", lambda one: str(one.dtype).removeprefix("torch.")),
    ("expected dB", lambda one: format_db(one.reference_sqnr_db)),
    ("rows measured", lambda one: str(one.sample_rows or _NOTHING)),
    ("rows fitted to", lambda one: _NOTHING if one.input_rows is None else str(one.input_rows)),
    ("packs", lambda one: _packed(one) or _NOTHING),
    ("rule", lambda one: one.rule or _NOTHING),
)
_RIGHT = (3, 5, 6, 7)
_WEIGHED = ("layer", "weights", "chosen", "bytes", "output dB")


def detail_lines(report: ReportData) -> list[str]:
    """Tables of all layers, in model order, and of those that a budget was shared out to.

    Args:
        report: The report.
    """
    return [*_layers(report.layers), *_weighed(report), *_warnings(report)]


def _layers(layers: Sequence[LayerReport]) -> Iterator[str]:
    rows = [tuple(title for title, _ in _COLUMNS), *(tuple(cell(one) for _, cell in _COLUMNS) for one in layers)]
    if layers:
        yield from ("", "what the layers are, in model order:", *aligned(rows, _RIGHT))


def _weighed(report: ReportData) -> Iterator[str]:
    if report.tradeoff is not None and report.tradeoff.layers:
        rows = [_WEIGHED, *map(_choice, report.tradeoff.layers)]
        yield from ("", "what was chosen for layers that share a budget:", *aligned(rows, {1, 3}))


def _choice(one: LayerTradeoff) -> tuple[str, ...]:
    chosen = one.options[one.chosen]
    name = one.layer or "(root)"
    return name, str(one.weights), str(chosen.scheme), format_bytes(chosen.size), format_db(chosen.output_sqnr_db)


def _warnings(report: ReportData) -> Iterator[str]:
    if report.validation is not None and report.validation.warnings:
        yield from ("", "validation warned of:", *(f"  {text}" for text in report.validation.warnings))


def _packed(record: LayerReport) -> str:
    if not record.matrices:  # a plan made none
        return ", ".join(record.weights)
    pairs = zip(record.weights, record.matrices, strict=True)
    return ", ".join(f"{name} as {_shape(matrix)}" for name, matrix in pairs)


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or _NOTHING
