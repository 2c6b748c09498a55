"""The difference of two reports: what was decided otherwise, and what each layer lost or won; and how it is told."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import attrs

from monoquant.errors import ConfigError
from monoquant.report.layer_difference import Change, LayerDifference, MeasuredOn, Status, decimal
from monoquant.report.plain import to_plain
from monoquant.report.table import aligned, format_bytes, format_db
from monoquant.report.wording import grouped, told
from monoquant.values import Finding

DIFFERENCE_VERSION = 1
_HEADINGS = ("layer", "measured", "before dB", "after dB", "change dB", "before", "after", "what changed")
_RIGHT = frozenset({2, 3, 4, 5, 6})
_SHOWN_DB = 0.005  # less than this is 0.00 in the table
_WORDS = {
    "added": "only in the second",
    "removed": "only in the first",
    "layer-changed": "not the same weights: not compared",
    "measured-otherwise": "measured on outputs in one, on weights in the other: not compared",
    "not-measured": "not measured in both: not compared",
}


@attrs.frozen
class Headline:
    """The SQNR that stands for the model.

    Args:
        measured_on: ``"output"``: the median over layers. ``"weight"``: pooled over all packed weights.
        before_db: In the first report; dB.
        after_db: In the second; dB.
    """

    measured_on: MeasuredOn
    before_db: float
    after_db: float


@attrs.frozen
class ReportDifference:
    """What two reports of a model say differently; ``print`` it for a table, the worst change first.

    Args:
        layers: One per layer, in the order of the second report; then those that only the first has.
        original_bytes: Bytes of all parameters and buffers of the float models, first and second.
        quantized_bytes: The same of the quantized models.
        headline: The SQNR that counts; None where it was not measured alike in both.
        pooled_weight_db: SQNR of all packed weights together, first and second; dB, None where it was not measured.
        new_findings: Findings that only the second report has, worst first. A finding of the same code, severity, layer
            and origin is the same one, whatever its figures.
        gone_findings: Findings that only the first report has, worst first.
        changes: Facts of the run that are not as they were: scheme, and the calibration's.
        versions: Packages of other versions, or in one report only.
        recipes: TOML texts of the recipes, first and second; None where there was none.
    """

    layers: tuple[LayerDifference, ...] = attrs.field(repr=False)
    original_bytes: tuple[int, int]
    quantized_bytes: tuple[int, int]
    headline: Headline | None = None
    pooled_weight_db: tuple[float | None, float | None] = (None, None)
    new_findings: tuple[Finding, ...] = ()
    gone_findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()
    versions: tuple[Change, ...] = ()
    recipes: tuple[str | None, str | None] = attrs.field(default=(None, None), repr=False)

    def by_status(self, *statuses: Status) -> tuple[LayerDifference, ...]:
        """Layers of one kind or of several, in order.

        Args:
            statuses: See :attr:`LayerDifference.status`.
        """
        return tuple(one for one in self.layers if one.status in statuses)

    def worst_first(self) -> tuple[LayerDifference, ...]:
        """All layers: those that lost something by falling loss, then those that cannot be compared, then the rest."""
        return tuple(sorted(self.layers, key=_rank))

    def worse_than(self, tolerance_db: float) -> tuple[LayerDifference, ...]:
        """Layers that lost more than is tolerated, the worst first.

        Those of another scheme count as well; those that cannot be compared are in ``by_status``.

        Args:
            tolerance_db: What a layer may lose; dB, finite, >= 0. Figures are compared as they are written in decimals,
                so that a fall by exactly the tolerance is tolerated.

        Raises:
            ConfigError: For a tolerance that is no finite number >= 0.
        """
        number = isinstance(tolerance_db, (int, float)) and not isinstance(tolerance_db, bool)
        if not number or not 0 <= tolerance_db < math.inf:
            raise ConfigError(f"tolerance_db={tolerance_db!r}: give a finite number >= 0, such as 0.5")
        limit = decimal(tolerance_db)
        return tuple(one for one in self.worst_first() if one.loss_db is not None and one.loss_db > limit)

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-ready values.

        Returns:
            A dict with a ``version`` key; every field is there, inf and nan are strings, layers have names and figures.
        """
        plain = {
            "original_bytes": list(self.original_bytes),
            "quantized_bytes": list(self.quantized_bytes),
            "headline": None if self.headline is None else to_plain(self.headline),
            "pooled_weight_db": to_plain(self.pooled_weight_db),
            "new_findings": to_plain(self.new_findings),
            "gone_findings": to_plain(self.gone_findings),
            "changes": [attrs.asdict(change) for change in self.changes],
            "versions": [attrs.asdict(change) for change in self.versions],
            "recipes": list(self.recipes),
        }
        return {"version": DIFFERENCE_VERSION, "layers": [one.to_dict() for one in self.layers], **plain}

    def __str__(self) -> str:
        return _render(self)


def _rank(one: LayerDifference) -> tuple[int, Decimal]:
    loss = one.loss_db
    if loss is None:
        return (1 if one.changes or one.status != "float" else 3), Decimal(0)
    return (0 if loss > 0 else 2), -loss


def _render(difference: ReportDifference) -> str:
    """One line per layer that is not as it was."""
    shown = [one for one in difference.worst_first() if _tells(one)]
    rows = [_HEADINGS, *(_row(one) for one in shown)]
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
