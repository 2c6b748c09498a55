"""JUnit XML: a document that any parser reads, with counts that hold."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import attrs
import monoquant as mq
from hypothesis import given
from hypothesis import strategies as st

from monoquant_ci.junit import JUnitReporter, element, text_of

ORIGIN = mq.Origin("monoquant-ci", "0.1.0")
ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def layer(name: str, action: mq.Action = mq.Action.QUANTIZE, sqnr: float | None = 20.5) -> mq.LayerReport:
    quantized = action is mq.Action.QUANTIZE
    return mq.LayerReport(
        layer=name,
        kind="Linear",
        shape=(64, 64),
        parameters=4096,
        action=action,
        reason="because",
        bytes_before=16384,
        bytes_after=2432 if quantized else 16384,
        scheme=mq.Scheme() if quantized else None,
        weight_sqnr_db=sqnr if quantized else None,
    )


def report_of(layers: Sequence[mq.LayerReport], findings: Sequence[mq.Finding]) -> mq.QuantReport:
    return mq.QuantReport(mq.Scheme(), tuple(layers), tuple(findings), 20000, 4000, versions=(("monoquant", "0.1.0"),))


def parsed(report: mq.QuantReport) -> ET.Element:
    return ET.fromstring(JUnitReporter().render(report).encode())  # noqa: S314 - written right here


def cases_of(root: ET.Element) -> dict[tuple[str, str], ET.Element]:
    cases = root.findall("./testsuite/testcase")
    found = {(case.attrib["classname"], case.attrib["name"]): case for case in cases}
    assert len(found) == len(cases)
    return found


def facts_of(parent: ET.Element) -> dict[str, str]:
    return {one.attrib["name"]: one.attrib["value"] for one in parent.findall("./properties/property")}


def check_counts(root: ET.Element) -> None:
    """What the attributes say is what is there, in the order that the schema asks for."""
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    cases = suite.findall("testcase")
    expected = {
        "tests": len(cases),
        "failures": len(suite.findall("./testcase/failure")),
        "errors": 0,
        "skipped": len(suite.findall("./testcase/skipped")),
    }
    for counted in (root, suite):
        assert {name: int(counted.attrib[name]) for name in expected} == expected
    assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases)]
    for case in cases:
        tags = [child.tag for child in case]
        assert tags == sorted(set(tags), key=["properties", "failure", "skipped", "system-out"].index)
        assert not {"failure", "skipped"} <= set(tags)
        assert "time" not in case.attrib


TEXTS = st.text(st.characters()) | st.text("\t\n\r &<>\"'\x00\x1b\ufffe]\\")


@given(text=TEXTS)
def test_a_parser_reads_back_what_was_written(text: str) -> None:
    """Every character survives, line ends and tabs too; those that XML cannot hold are shown escaped."""
    document = f"<a>{element('b', {'c': text})}<d>{text_of(text)}</d></a>"
    root = ET.fromstring(document.encode())  # noqa: S314 - written right here
    expected = ILLEGAL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    assert root[0].attrib["c"] == expected
    assert (root[1].text or "") == expected


def test_surrogates_are_escaped_as_well() -> None:
    """Half a surrogate pair is no character, and could not even be stored."""
    assert text_of("a\ud800\x00b") == r"a\ud800\x00b"


def test_layers_and_findings_become_cases() -> None:
    """CRITICAL is a failure, a kept layer is skipped with its reason, and other findings are output."""
    layers = [layer("a"), layer("b"), layer("c", mq.Action.SKIP), layer("", mq.Action.UNSUPPORTED)]
    findings = [
        mq.Finding("bad", mq.Severity.CRITICAL, "Bad.", "a", "Act.", ORIGIN),
        mq.Finding("worse", mq.Severity.CRITICAL, "Worse.", "a"),
        mq.Finding("low", mq.Severity.WARNING, "Low.", "a"),
        mq.Finding("size", mq.Severity.CRITICAL, "Large.", origin=ORIGIN),
        mq.Finding("told", mq.Severity.INFO, "One."),
        mq.Finding("told", mq.Severity.INFO, "Two."),
        mq.Finding("gone", mq.Severity.WARNING, "Gone.", "no such layer"),
    ]
    root = parsed(report_of(layers, findings))
    check_counts(root)
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["skipped"]) == ("8", "2", "2")
    cases = cases_of(root)
    model = [name for group, name in cases if group == "monoquant.model"]
    assert model == ["size", "told", "told #2"]
    failure = cases["monoquant.layers", "a"].find("failure")
    assert failure is not None
    assert failure.attrib == {"message": "Bad.", "type": "bad"}
    assert failure.text == "CRITICAL bad: Bad. Act. [monoquant-ci 0.1.0]\nCRITICAL worse: Worse. [monoquant]"
    assert cases["monoquant.layers", "a"].findtext("system-out") == "WARNING low: Low. [monoquant]"
    assert cases["monoquant.layers", "c"].find("skipped").attrib["message"] == "skip: because"
    assert cases["monoquant.layers", "(root)"].find("skipped").attrib["message"] == "unsupported: because"
    assert cases["monoquant.layers", "no such layer"].findtext("system-out") == "WARNING gone: Gone. [monoquant]"
    assert [child.tag for child in cases["monoquant.layers", "b"]] == ["properties"]


def test_properties_have_scheme_and_sqnr() -> None:
    """Figures that are not finite are told; what was not measured is left out."""
    layers = [layer("a"), layer("b", sqnr=math.nan), layer("c", sqnr=None), layer("d", mq.Action.SKIP)]
    layers[0] = attrs.evolve(layers[0], output_sqnr_db=math.inf, algorithm="gptq")
    root = parsed(report_of(layers, []))
    facts = {name: facts_of(case) for (_, name), case in cases_of(root).items()}
    assert facts["a"] == {
        "action": "quantize",
        "scheme": "int4 g128 asymmetric float16",
        "algorithm": "gptq",
        "weight_sqnr_db": "20.5",
        "output_sqnr_db": "inf",
        "bytes_before": "16384",
        "bytes_after": "2432",
    }
    assert facts["b"]["weight_sqnr_db"] == "nan"
    assert facts["c"].keys() == facts["d"].keys() | {"scheme"} == {"action", "scheme", "bytes_before", "bytes_after"}
    assert facts_of(root[0]) == {
        "scheme": "int4 g128 asymmetric float16",
        "original_bytes": "20000",
        "quantized_bytes": "4000",
        "version.monoquant": "0.1.0",
    }


@given(
    names=st.lists(TEXTS, max_size=4, unique=True),
    found=st.lists(st.tuples(st.sampled_from(mq.Severity), TEXTS, st.integers(-1, 4)), max_size=8),
)
def test_any_report_is_valid_and_counted(names: list[str], found: list[tuple[mq.Severity, str, int]]) -> None:
    """Whatever layers and findings are called, the document parses and its counts are those of the report."""
    actions = list(mq.Action)
    layers = [layer(f"{index} {name}", actions[index % 3]) for index, name in enumerate(names)]
    known = [one.layer for one in layers]
    findings = [
        mq.Finding(text, severity, text, known[index] if 0 <= index < len(known) else None, text)
        for severity, text, index in found
    ]
    root = parsed(report_of(layers, findings))
    check_counts(root)
    failing = {one.layer for one in findings if one.severity is mq.Severity.CRITICAL and one.layer is not None}
    about_model = [one for one in findings if one.layer is None]
    assert int(root.attrib["tests"]) == len(layers) + len(about_model)
    critical = [one for one in about_model if one.severity is mq.Severity.CRITICAL]
    assert int(root.attrib["failures"]) == len(failing) + len(critical)
