"""A difference of two reports as text: what became of the model, then a table, the worst change first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from monoquant.report.layer_difference import LayerDifference
from monoquant.report.table import aligned, format_bytes, format_db
from monoquant.report.wording import grouped, told
from monoquant.values import Finding

if TYPE_CHECKING:
    from monoquant.report.difference import ReportDifference

HEADINGS = ("layer", "measured", "before dB", "after dB", "change dB", "before", "after", "what changed")
_RIGHT = frozenset({2, 3, 4, 5, 6})
_SHOWN_DB = 0.005  # less than this is 0.00 in the table
_WORDS = {
    "added": "only in the second",
    "removed": "only in the first",
    "layer-changed": "not the same weights: not compared",
    "measured-otherwise": "measured on outputs in one, on weights in the other: not compared",
    "not-measured": "not measured in both: not compared",
}


def render_difference(difference: ReportDifference) -> str:
    """The whole difference as text, one line per layer that is not as it was.

    Args:
        difference: Of two reports.
    """
    shown = [one for one in difference.worst_first() if _tells(one)]
    rows = [HEADINGS, *(_row(one) for one in shown)]
    table = ["", *aligned(rows, _RIGHT)] if shown else []
    return "\n".join(
        [
            *_summary(difference),
            *table,
            *_same(difference.layers, len(shown)),
            *_findings("new findings:", difference.new_findings),
            *_findings("findings that are gone:", difference.gone_findings),
            *_recipes(difference.recipes),
        ]
    )


def _summary(difference: ReportDifference) -> Iterator[str]:
    yield _sizes("quantized", *difference.quantized_bytes)
    if difference.original_bytes[0] != difference.original_bytes[1]:
        yield _sizes("float model", *difference.original_bytes)
    if difference.headline is None:
        yield "headline SQNR: not measured alike in both, and not compared"
    else:
        head = difference.headline
        kind = "layer outputs, median" if head.measured_on == "output" else "weights, pooled"
        yield f"{kind}: {format_db(head.before_db)} -> {format_db(head.after_db)} dB"
    then, now = difference.pooled_weight_db
    if (then, now) != (None, None) and (difference.headline is None or difference.headline.measured_on == "output"):
        yield f"weights, pooled: {format_db(then)} -> {format_db(now)} dB"
    yield from (str(change) for change in difference.changes)
    if difference.versions:
        yield "versions: " + ", ".join(map(str, difference.versions))


def _sizes(what: str, before: int, after: int) -> str:
    grown = f" ({100 * (after - before) / before:+.2f} %)" if before and before != after else ""
    return f"{what}: {format_bytes(before)} -> {format_bytes(after)}{grown}"


def _tells(one: LayerDifference) -> bool:
    if one.status in _WORDS or one.changes:
        return True
    return one.loss_db is not None and abs(one.loss_db) >= _SHOWN_DB


def _row(one: LayerDifference) -> tuple[str, ...]:
    figures = format_db(one.before_db), format_db(one.after_db)
    loss = one.loss_db
    # The change is what a person expects under that name: negative where SQNR fell.
    change = "-" if loss is None else format_db(float(-loss) + 0.0, sign=True)
    sizes = (format_bytes(record.bytes_after) if record else "-" for record in (one.before, one.after))
    return (one.name, one.measured_on or "-", *figures, change, *sizes, _what_changed(one))


def _what_changed(one: LayerDifference) -> str:
    words = [_WORDS[one.status]] if one.status in _WORDS else []
    if one.new_name is not None:
        words.append(f"perhaps {one.new_name!r} now")
    return "; ".join([*words, *map(str, one.changes)])


def _same(layers: Sequence[LayerDifference], shown: int) -> Iterator[str]:
    left = len(layers) - shown
    if left:
        yield f"{left} {'other ' if shown else ''}layers: the same decision, and SQNR by less than {_SHOWN_DB} dB apart"


def _findings(title: str, findings: tuple[Finding, ...]) -> Iterable[str]:
    return ["", title, *(told(first, text) for first, text in grouped(findings))] if findings else []


def _recipes(recipes: tuple[str | None, str | None]) -> Iterator[str]:
    before, after = ((text or "").splitlines() for text in recipes)
    if before != after:
        yield from ("", "recipe:")
        yield from (f"  {line}" for line in list(difflib.unified_diff(before, after, lineterm="", n=1))[2:])
