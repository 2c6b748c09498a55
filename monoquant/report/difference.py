"""Two reports side by side: what was decided otherwise, and what each layer lost or won; like is compared with like."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import attrs

from monoquant.errors import ConfigError, InputError
from monoquant.report.difference_table import render_difference
from monoquant.report.layer_difference import Change, LayerDifference, MeasuredOn, Status, decimal
from monoquant.report.plain import to_plain
from monoquant.report.quant_report import QuantReport
from monoquant.report.records import LayerReport
from monoquant.values import Finding

DIFFERENCE_VERSION = 1


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
        return render_difference(self)


def _rank(one: LayerDifference) -> tuple[int, Decimal]:
    loss = one.loss_db
    if loss is None:
        return (1 if one.changes or one.status != "float" else 3), Decimal(0)
    return (0 if loss > 0 else 2), -loss


def compare_reports(before: QuantReport, after: QuantReport) -> ReportDifference:
    """Hold a report against another one, such as that of the last release.

    Layers are found by name; a module that is used under several names is found under each.

    Args:
        before: The report to compare with.
        after: The report to be judged.

    Raises:
        InputError: When one of them is no QuantReport.
    """
    for name, given in (("before", before), ("after", after)):
        if not isinstance(given, QuantReport):
            raise InputError(
                f"{name} is a {type(given).__name__}: give a QuantReport, such as load_report(path) returns"
            )
    partners = _partners(before.layers, after.layers)
    renamed = {then.layer: now.layer for then, now in partners if then is not None and now is not None}
    return ReportDifference(
        layers=_layers(partners),
        original_bytes=(before.original_bytes, after.original_bytes),
        quantized_bytes=(before.quantized_bytes, after.quantized_bytes),
        headline=_headline(before, after),
        pooled_weight_db=(before.pooled_weight_sqnr_db, after.pooled_weight_sqnr_db),
        new_findings=tuple(_surplus(after.findings, before.findings, {}, renamed)),
        gone_findings=tuple(_surplus(before.findings, after.findings, renamed, {})),
        changes=tuple(_differing(_run_facts(before), _run_facts(after))),
        versions=tuple(_differing(dict(before.versions), dict(after.versions))),
        recipes=(before.recipe, after.recipe),
    )


def compare_layers(before: Sequence[LayerReport], after: Sequence[LayerReport]) -> tuple[LayerDifference, ...]:
    """Hold the layers of a report against those of another one; as :func:`compare_reports` does.

    Args:
        before: Records to compare with.
        after: Records to be judged.

    Returns:
        One per layer, in the order of ``after``; then those that are gone.
    """
    return _layers(_partners(before, after))


Partners = list[tuple[LayerReport | None, LayerReport | None]]


def _partners(before: Sequence[LayerReport], after: Sequence[LayerReport]) -> Partners:
    # A module that is used under several names may be listed under another of them now.
    then, now = _by_name(before), _by_name(after)
    found: Partners = [(_first(then, record), record) for record in after]
    met = {one.layer for one, _ in found if one is not None}
    return [*found, *((record, _first(now, record)) for record in before if record.layer not in met)]


def _by_name(records: Sequence[LayerReport]) -> dict[str, LayerReport]:
    aliases = {alias: record for record in records for alias in record.aliases}
    return aliases | {record.layer: record for record in records}


def _first(known: dict[str, LayerReport], record: LayerReport) -> LayerReport | None:
    return next((known[name] for name in (record.layer, *record.aliases) if name in known), None)


def _layers(partners: Partners) -> tuple[LayerDifference, ...]:
    added = [now for then, now in partners if then is None and now is not None]
    lost = [then for then, now in partners if now is None and then is not None]
    return tuple(
        LayerDifference(then, now, _new_name(then, lost, added) if now is None and then is not None else None)
        for then, now in partners
    )


def _new_name(record: LayerReport, lost: Sequence[LayerReport], added: Sequence[LayerReport]) -> str | None:
    """The new layer that it may have become: the one whose name has more or less in front, or the only one alike."""
    alike = [other for other in added if _kind(other) == _kind(record)]
    close = [other for other in alike if f".{other.layer}".endswith(f".{record.layer}")]
    close += [other for other in alike if f".{record.layer}".endswith(f".{other.layer}")]
    if len(close) == 1:
        return close[0].layer
    only = len(alike) == 1 and [_kind(other) for other in lost].count(_kind(record)) == 1
    return alike[0].layer if only else None


def _kind(record: LayerReport) -> tuple[Any, ...]:
    return record.kind, record.shape, record.scheme is None


def _headline(before: QuantReport, after: QuantReport) -> Headline | None:
    (then, before_db), (now, after_db) = before.headline, after.headline
    if then is None or then != now or before_db is None or after_db is None:
        return None
    return Headline(then, before_db, after_db)


def _run_facts(report: QuantReport) -> dict[str, str]:
    facts = {"scheme": str(report.scheme)}
    if report.calibration is not None:
        seen = report.calibration
        facts |= {"calibration samples": str(seen.samples), "calibration batches": str(seen.batches)}
        facts |= {"held-out samples": str(seen.held_out)}
    return facts


def _differing(before: dict[str, str], after: dict[str, str]) -> Iterator[Change]:
    for what in dict.fromkeys([*before, *after]):
        if before.get(what) != after.get(what):
            yield Change(what, before.get(what), after.get(what))


def _surplus(
    findings: Sequence[Finding], others: Sequence[Finding], names: dict[str, str], other_names: dict[str, str]
) -> Iterator[Finding]:
    """Findings without a partner among others, which is one of the same words, or of other figures."""
    groups: dict[tuple[object, ...], list[Finding]] = defaultdict(list)
    left: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for finding in findings:
        groups[_identity(finding, names)].append(finding)
    for finding in others:
        left[_identity(finding, other_names)].append(finding.message)
    for identity, found in groups.items():
        unequal = []
        for finding in found:
            if finding.message in left[identity]:
                left[identity].remove(finding.message)
            else:
                unequal.append(finding)
        yield from unequal[len(left[identity]) :]


def _identity(finding: Finding, names: dict[str, str]) -> tuple[object, ...]:
    layer = finding.layer if finding.layer is None else names.get(finding.layer, finding.layer)
    return finding.code, finding.severity, layer, finding.origin.name
