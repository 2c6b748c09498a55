"""Two reports side by side, layer by layer; like is compared with like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from monoquant.errors import InputError
from monoquant.report.difference import Headline, ReportDifference
from monoquant.report.layer_difference import Change, LayerDifference
from monoquant.report.quant_report import QuantReport
from monoquant.report.records import LayerReport
from monoquant.values import Finding


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
