"""JUnit XML: the report as a test suite, which most build servers can show.

Source: the schema of Jenkins' xUnit plugin, junit-10.xsd, with properties in test cases, as pytest writes them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final
from xml.sax.saxutils import escape

import attrs
from monoquant import Action, Finding, LayerReport, QuantReport, Reporter, Severity

LAYERS: Final = "monoquant.layers"
MODEL: Final = "monoquant.model"

# XML 1.0, section 2.2: what is in none of these ranges cannot be in a document, not even as a reference.
_ILLEGAL: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Parsers turn these into spaces and line feeds unless they are references.
_AS_REFERENCES: Final = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;", '"': "&quot;"}


class JUnitReporter(Reporter):
    """One test case per layer, and one per finding about the whole model.

    A layer with a CRITICAL finding is a failure; one that stayed float is skipped, with the reason; other findings are
    its output. Times are absent: nothing was timed.
    """

    name: ClassVar[str] = "junit"
    suffixes: ClassVar[tuple[str, ...]] = (".xml",)

    def render(self, report: QuantReport) -> str:
        cases = [*_layer_cases(report), *_model_cases(report.findings)]
        counts = {
            "tests": len(cases),
            "failures": sum(case.failed for case in cases),
            "errors": 0,
            "skipped": sum(case.skipped for case in cases),
        }
        suite = element(
            "testsuite", {"name": "monoquant", **counts}, _properties(_facts(report)), *(case.xml() for case in cases)
        )
        return f'<?xml version="1.0" encoding="utf-8"?>\n{element("testsuites", counts, suite)}\n'


def text_of(value: object) -> str:
    r"""A value as the content of an element or an attribute.

    Args:
        value: Anything; of its text, characters that XML cannot hold become ``\x1b``, ``\ufffe`` and the like.
    """
    shown = _ILLEGAL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))
    return escape(shown, _AS_REFERENCES)


def element(tag: str, attributes: Mapping[str, object], *content: str) -> str:
    """An element of XML.

    Args:
        tag: Its name.
        attributes: Any values.
        content: XML; empty parts are left out.
    """
    start = " ".join([tag, *(f'{name}="{text_of(value)}"' for name, value in attributes.items())])
    inner = "\n".join(filter(None, content))
    return f"<{start}>\n{inner}\n</{tag}>" if inner else f"<{start} />"


@attrs.frozen
class _Case:
    group: str
    name: str
    findings: Sequence[Finding]
    facts: Mapping[str, object] = attrs.field(factory=dict)
    reason_to_skip: str | None = None

    @property
    def failed(self) -> bool:
        return any(finding.severity is Severity.CRITICAL for finding in self.findings)

    @property
    def skipped(self) -> bool:
        return self.reason_to_skip is not None and not self.failed

    def xml(self) -> str:
        critical = [finding for finding in self.findings if finding.severity is Severity.CRITICAL]
        others = [finding for finding in self.findings if finding.severity is not Severity.CRITICAL]
        parts = [_properties(self.facts)]
        if critical:
            head = {"message": critical[0].message, "type": critical[0].code}
            parts.append(_leaf("failure", head, _told(critical)))
        elif self.skipped:
            parts.append(element("skipped", {"message": self.reason_to_skip}))
        if others:
            parts.append(_leaf("system-out", {}, _told(others)))
        return element("testcase", {"classname": self.group, "name": self.name}, *parts)


def _leaf(tag: str, attributes: Mapping[str, object], text: str) -> str:
    # Without line feeds around its text, which would be a part of it.
    return f"{element(tag, attributes)[: -len(' />')]}>{text_of(text)}</{tag}>"


def _told(findings: Iterable[Finding]) -> str:
    return "\n".join(f"{one.severity.name} {one.code}: {one} [{one.origin}]" for one in findings)


def _properties(facts: Mapping[str, object]) -> str:
    known = {name: value for name, value in facts.items() if value is not None}
    return (
        element(
            "properties", {}, *(element("property", {"name": name, "value": value}) for name, value in known.items())
        )
        if known
        else ""
    )


def _layer_cases(report: QuantReport) -> list[_Case]:
    findings: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        if finding.layer is not None:
            findings[finding.layer].append(finding)
    cases = [_layer_case(record, findings.pop(record.layer, [])) for record in report.layers]
    # Findings may be about layers that the model does not have, such as those of a baseline.
    return [*cases, *(_Case(LAYERS, layer or "(root)", found) for layer, found in findings.items())]


def _layer_case(record: LayerReport, findings: Sequence[Finding]) -> _Case:
    facts = {
        "action": record.action.value,
        "scheme": record.scheme,
        "algorithm": record.algorithm or None,
        "weight_sqnr_db": record.weight_sqnr_db,
        "output_sqnr_db": record.output_sqnr_db,
        "bytes_before": record.bytes_before,
        "bytes_after": record.bytes_after,
    }
    kept = None if record.action is Action.QUANTIZE else f"{record.action.value}: {record.reason}"
    return _Case(LAYERS, record.name, findings, facts, kept)


def _model_cases(findings: Iterable[Finding]) -> list[_Case]:
    seen: Counter[str] = Counter()
    cases = []
    for finding in findings:
        if finding.layer is None:
            seen[finding.code] += 1
            # Build servers tell test cases apart by their names.
            count = f" #{seen[finding.code]}" if seen[finding.code] > 1 else ""
            cases.append(_Case(MODEL, f"{finding.code}{count}", [finding]))
    return cases


def _facts(report: QuantReport) -> dict[str, object]:
    versions = {f"version.{name}": version for name, version in report.versions}
    sizes = {"original_bytes": report.original_bytes, "quantized_bytes": report.quantized_bytes}
    return {"scheme": report.scheme, **sizes, **versions}
