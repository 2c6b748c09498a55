"""Findings in words: one text per kind of finding, however many layers it concerns."""

from __future__ import annotations

from collections.abc import Iterable

from monoquant.values import BUILT_IN, Finding, Severity

_NAMED_LAYERS = 5


def grouped(findings: Iterable[Finding]) -> list[tuple[Finding, str]]:
    """One text per code, severity and origin; further layers are named behind the first one.

    Args:
        findings: Findings, the worst first.

    Returns:
        The first finding of each group with the group's text.
    """
    return [(group[0], _text(group)) for group in alike(findings)]


def alike(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of one code, severity and origin together; those about the whole model stay apart.

    Args:
        findings: Findings, the worst first.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        subject = finding.message if finding.layer is None else None
        groups.setdefault((finding.code, finding.severity, finding.origin.name, subject), []).append(finding)
    return list(groups.values())


def texts(findings: Iterable[Finding]) -> list[str]:
    """What people must read: the texts of warnings and critical findings.

    Args:
        findings: Findings, the worst first.
    """
    return [text for first, text in grouped(findings) if first.severity > Severity.INFO]


def told(first: Finding, text: str) -> str:
    """A line of a list of findings.

    Args:
        first: The first finding of a group.
        text: The group's text.
    """
    origin = "" if first.origin == BUILT_IN else f" [{first.origin}]"
    return f"  {first.severity.name.lower():<8} {first.code}: {text}{origin}"


def _text(group: list[Finding]) -> str:
    worst, *rest = group
    others = [layer for layer in dict.fromkeys(finding.layer for finding in rest) if layer != worst.layer]
    if not others:
        more = f" And {len(rest)} more of its kind there." if rest else ""
        return f"{worst.message}{more} {worst.remedy}".rstrip()
    named = ", ".join(repr(layer) for layer in others[:_NAMED_LAYERS])
    if len(others) > _NAMED_LAYERS:
        named += f" and {len(others) - _NAMED_LAYERS} more layers"
    return f"{worst.message} Likewise {named}. {worst.remedy}".rstrip()
