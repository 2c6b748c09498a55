"""The table of all layers, in model order; JavaScript sorts and filters it, and it is complete without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from monoquant.report.html.facts import NOTHING, counted, decibels, number, scheme_of, shape, signed
from monoquant.report.html.markup import Html, escape, join, tag
from monoquant.report.records import LayerReport, ReportData
from monoquant.report.table import format_bytes, worst_first
from monoquant.values import Action

ROWS_BYTES = 690_000  # of rows, so that the page stays below 1 MB
ONE_LINE = 56  # characters of a name that is not broken
WORDY = 600  # layers up to which each row says as well how its layer runs


@attrs.frozen
class Column:
    """A column of the table.

    Args:
        title: Its heading.
        sorts: How its cells compare: ``"number"``, ``"size"`` (of a shape) or ``"text"``.
        hint: What it is, in a sentence.
    """

    title: str
    sorts: str
    hint: str


COLUMNS = (
    Column("#", "number", "place in the model"),
    Column("layer", "text", "dotted name"),
    Column("decision", "text", "quantize, skip or unsupported"),
    Column("output dB", "number", "SQNR of the layer's output on calibration inputs"),
    Column("weight dB", "number", "SQNR of the weight"),
    Column("expected", "number", "dB that the scheme reaches on Gaussian weights"),
    Column("before", "number", "bytes of parameters and buffers as given"),
    Column("after", "number", "bytes in the result"),
    Column("scheme", "text", "how the weights are stored"),
    Column("algorithm", "text", "what chose the codes"),
    Column("kind", "text", "class of the module"),
    Column("shape", "size", "of the weight"),
    Column("parameters", "number", "of its own, biases included"),
    Column("rows", "number", "calibration input rows that the output was measured on"),
    Column("why", "text", "the reason, and what else is to be known"),
)


def layer_table(report: ReportData) -> Html:
    """The table with the controls that JavaScript shows.

    Args:
        report: The report.
    """
    rows = _rows(report.layers)
    kept = [rows[index] for index in sorted(rows)]
    head = tag("tr", *(_heading(column) for column in COLUMNS))
    table = tag("table", tag("thead", head), Html(f"<tbody>{join(kept)}</tbody>"), id="layers", class_="all")
    label = "all layers"
    return join(
        [
            _controls(report, len(kept)),
            tag("div", table, class_="scroll tall", tabindex="0", role="region", aria_label=label),
            *_notes(report, len(kept)),
        ]
    )


def _heading(column: Column) -> Html:
    kind = None if column.sorts == "text" else "n"
    return tag("th", column.title, scope="col", class_=kind, data_sort=column.sorts, title=column.hint)


def _rows(layers: Sequence[LayerReport]) -> Mapping[int, Html]:
    """Rows by place in the model; where they do not all fit, those of the worst layers."""
    places = {id(record): index for index, record in enumerate(layers)}
    wordy = len(layers) <= WORDY
    rows: dict[int, Html] = {}
    used = 0
    for record in worst_first(tuple(layers)):
        place = places[id(record)]
        row = _row(place, record, wordy)
        used += len(row.encode())
        if used > ROWS_BYTES:
            break
        rows[place] = row
    return rows


def _row(place: int, record: LayerReport, wordy: bool) -> Html:
    rows = number(record.sample_rows) if record.sample_rows else NOTHING
    cells = [
        _cell(place + 1),
        _cell(record.name, "name" if len(record.name) <= ONE_LINE else "'name long'"),
        _cell(record.action.value, record.action.value),
        *(_cell(one) for one in _decibels(record)),
        *(_cell(format_bytes(count), value=count) for count in (record.bytes_before, record.bytes_after)),
        _cell(scheme_of(record)),
        _cell(record.algorithm or NOTHING),
        _cell(record.kind),
        _cell(shape(record.shape)),
        _cell(number(record.parameters)),
        _cell(rows),
        _cell(_why(record, wordy), "why"),
    ]
    return Html(f"<tr id=l{place}>{''.join(cells)}\n")


def _cell(content: object, kind: str = "", value: int | None = None) -> str:
    # Which columns stand at their right edge is said once, in the style.
    # End tags of cells and rows and most quotes may be left out, and there are many of them.
    return f"<td{kind and f' class={kind}'}{'' if value is None else f' data-v={value}'}>{escape(content)}"


def _decibels(record: LayerReport) -> tuple[Html, Html, Html]:
    """Output, weight and Gaussian weight; marked is the one that counts."""
    weight, output = record.weight_sqnr_db, record.output_sqnr_db
    return decibels(output), decibels(weight, marked=output is None), decibels(record.reference_sqnr_db, marked=False)


def _why(record: LayerReport, wordy: bool) -> Html:
    words: list[object] = [record.reason]
    if wordy:
        words += [record.compute or None, f"rule {record.rule}" if record.rule else None]
        words += [record.remedy or None, _packed(record)]
        words.append(f"fitted to {counted(record.input_rows, 'input row')}" if record.input_rows is not None else None)
        words.append(f"in {str(record.dtype).removeprefix('torch.')}" if str(record.dtype) != "torch.float32" else None)
    words.append(f"also named {', '.join(record.aliases)}" if record.aliases else None)
    words.append(signed(record.origin))
    return join(words, "; ")


def _packed(record: LayerReport) -> str | None:
    """Which parameters are packed, where it is not the weight as it stands."""
    if record.weights in ((), ("weight",)) and record.matrices in ((), (record.shape,)):
        return None
    return f"packs {', '.join(record.weights)} as {', '.join(map(shape, record.matrices))}"


def _controls(report: ReportData, shown: int) -> Html:
    options = [tag("option", "all decisions", value="")]
    options += [tag("option", action.value, value=action.value) for action in Action if report.by_action(action)]
    # JavaScript shows them: without it they would do nothing.
    return tag(
        "form",
        tag("label", "Filter ", Html('<input type="search" id="filter" placeholder="name, kind, scheme, reason …">')),
        tag("label", "Decision ", tag("select", *options, id="decision")),
        tag("output", f"{shown:,} layers", id="count", for_="filter decision"),
        id="controls",
        class_="controls",
        hidden=True,
    )


def _notes(report: ReportData, shown: int) -> Iterator[Html]:
    if shown < len(report.layers):
        words = f"The worst {shown:,} of {len(report.layers):,} layers; the JSON form of this report has all of them."
        yield tag("p", words, class_="muted")
    if len(report.layers) > WORDY:
        words = f"With more than {WORDY} layers, how each one runs and what it was fitted to is in the JSON form only."
        yield tag("p", words, class_="muted")
