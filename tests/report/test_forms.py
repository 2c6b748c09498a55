"""docs/report.md: the documented fields are the fields there are, and what it says of the forms is so."""

from __future__ import annotations

import enum
import json
import re
import types
import typing
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import monoquant as mq
from monoquant.report.tradeoff import CurvePoint, Evaluation, LayerTradeoff, SchemeCost

PAGE = Path(__file__).parents[2] / "docs" / "report.md"
CHOSEN = mq.Scheme(8, 48, True, torch.bfloat16)
OTHER = mq.HalfScheme(torch.float16)
LAYER = mq.LayerReport(
    layer="the.layer",
    kind="TheKind",
    shape=(61, 67),
    parameters=4093,
    action=mq.Action.QUANTIZE,
    reason="the reason",
    bytes_before=3 << 20,
    bytes_after=5 << 10,
    dtype=torch.float64,
    rule="the rule",
    origin=mq.Origin("the-plugin", "9.8.7"),
    remedy="the remedy",
    scheme=CHOSEN,
    weights=("the_parameter",),
    matrices=((71, 73),),
    compute="the compute",
    algorithm="the_algorithm",
    weight_sqnr_db=31.25,
    reference_sqnr_db=32.25,
    output_sqnr_db=33.25,
    sample_rows=1237,
    input_rows=1249,
    aliases=("the.alias",),
)
STATIC = attrs.evolve(LAYER, layer="static", scheme=mq.Scheme(8, None, True, torch.float32, "static"))
KEPT = attrs.evolve(
    LAYER, layer="kept", action=mq.Action.UNSUPPORTED, scheme=None, weights=(), matrices=(), weight_sqnr_db=None
)
REPORT = mq.QuantReport(
    scheme=mq.Scheme(8, 48, True, torch.float32),
    layers=(LAYER, attrs.evolve(LAYER, layer="half", scheme=OTHER), STATIC, attrs.evolve(KEPT, output_sqnr_db=None)),
    findings=(
        mq.Finding(
            "the-code", mq.Severity.CRITICAL, "The message.", "the.layer", "The remedy.", mq.Origin("of", "1.2")
        ),
    ),
    original_bytes=7 << 20,
    quantized_bytes=11 << 10,
    pooled_weight_sqnr_db=41.25,
    calibration=mq.CalibrationFacts(1601, 1607, ("never.called",), 1609),
    validation=mq.ValidationResult(43.25, 7.0, 11 / 1024, 651.64, False, False, ["The error."], ["The warning."]),
    versions=(("the-package", "6.5.4"),),
    tradeoff=mq.Tradeoff(
        "kl",
        (
            LayerTradeoff(
                "the.layer", 4091, (SchemeCost(OTHER, 10), SchemeCost(CHOSEN, 13 << 10, 44.25, 0.1)), 1, 0.0317
            ),
        ),
        (CurvePoint(5.125, 0.625), CurvePoint(9.125, 0.25)),
        7.375,
        (Evaluation(6.875, 0.8125, True), Evaluation(4.875, 0.5, False)),
    ),
    comparison=mq.ComparisonResult("kl", 0.0613, 1613, 1619),
    recipe='[scheme]\nbits = 8\n\n[[skip]]\nnames = ["the.<name>"]\n',
)

# What stands for a field in the text and on the page; None where it is not told there.
TOLD: dict[str, tuple[str | None, str | None]] = {
    "QuantReport.scheme": ("int8 g48 symmetric float32: 3 quantize", "<h1>int8 g48 symmetric float32</h1>"),
    "QuantReport.layers": ("the.layer", "the.layer"),
    "QuantReport.findings": ("findings:", "<code>the-code</code>"),
    "QuantReport.original_bytes": ("7.0 MiB ->", "7.0 MiB"),
    "QuantReport.quantized_bytes": ("-> 11.0 KiB (651.64x smaller)", "651.64\u00d7 smaller"),
    "QuantReport.pooled_weight_sqnr_db": ("pooled 41.25 dB", "weights pooled 41.25 dB"),
    "QuantReport.calibration": ("calibration: ", "1,601 samples"),
    "QuantReport.validation": ("median 43.25 dB", "43.25 dB"),
    "QuantReport.versions": ("the-package 6.5.4", "<code>the-package</code></td><td>6.5.4"),
    "QuantReport.tradeoff": ("how precision was shared out", "How precision was shared out"),
    "QuantReport.comparison": ("whole model: ", "Whole model"),
    "QuantReport.recipe": ('recipe:\n  [scheme]\n  bits = 8\n\n  [[skip]]\n  names = ["the.<name>"]', REPORT.recipe),
    "LayerReport.layer": ("\nthe.layer ", ">the.layer<"),
    "LayerReport.kind": (" TheKind ", ">TheKind<"),
    "LayerReport.shape": (" 61x67 ", ">61\u00d767<"),
    "LayerReport.parameters": (" 4093 ", ">4,093<"),
    "LayerReport.action": ("unsupported", ">unsupported<"),
    "LayerReport.reason": ("the reason by", "the reason"),
    "LayerReport.bytes_before": ("3.0 MiB", "3.0 MiB"),
    "LayerReport.bytes_after": ("5.0 KiB", "5.0 KiB"),
    "LayerReport.dtype": (" float64 ", "in float64"),
    "LayerReport.rule": ("  the rule\n", "rule the rule"),
    "LayerReport.origin": ("[the-plugin 9.8.7]", "the-plugin 9.8.7"),
    "LayerReport.remedy": ("; the remedy", "; the remedy"),
    "LayerReport.scheme": (f": {CHOSEN}; ", f"<td>{CHOSEN}<"),
    "LayerReport.weights": ("  the_parameter as ", "packs the_parameter"),
    "LayerReport.matrices": (" as 71x73 ", "as 71\u00d773"),
    "LayerReport.compute": ("the compute", "the compute"),
    "LayerReport.algorithm": ("by the_algorithm", ">the_algorithm<"),
    "LayerReport.weight_sqnr_db": (" 31.25 ", "<td>31.25"),
    "LayerReport.reference_sqnr_db": (" 32.25 ", "<td>32.25"),
    "LayerReport.output_sqnr_db": (" 33.25 ", "<td>33.25"),
    "LayerReport.sample_rows": (" 1237 ", ">1,237"),
    "LayerReport.input_rows": (" 1249 ", "fitted to 1,249 input rows"),
    "LayerReport.aliases": ("also named the.alias", "also named the.alias"),
    "Origin.name": ("[of ", ">of 1.2<"),
    "Origin.version": ("1.2]", ">of 1.2<"),
    "Scheme.bits": ("int8 g48", "int8 g48"),
    "Scheme.group_size": (" g48 ", " g48 "),
    "Scheme.symmetric": (" symmetric ", " symmetric "),
    "Scheme.scale_dtype": (" bfloat16", " bfloat16"),
    "Scheme.activations": ("static int8 inputs", "static int8 inputs"),
    "HalfScheme.dtype": (": float16;", "<td>float16<"),
    "Finding.code": ("the-code:", "the-code"),
    "Finding.severity": ("critical ", ">critical<"),
    "Finding.message": ("The message.", "The message."),
    "Finding.layer": ("\nthe.layer", ">the.layer<"),
    "Finding.remedy": ("The remedy.", "The remedy."),
    "Finding.origin": ("[of 1.2]", ">of 1.2<"),
    "CalibrationFacts.samples": ("1601 samples", "1,601 samples"),
    "CalibrationFacts.batches": ("1607 batches", "1,607 batches"),
    "CalibrationFacts.unseen_layers": ("'never.called'", ">never.called<"),
    "CalibrationFacts.held_out": ("1609 of them", "1,609 of them"),
    "ValidationResult.sqnr_db": ("43.25 dB", "43.25 dB"),
    "ValidationResult.original_size_mb": ("7.0 MiB", "7.0 MiB"),
    "ValidationResult.quantized_size_mb": ("11.0 KiB", "11.0 KiB"),
    "ValidationResult.compression_ratio": ("651.64x", "651.64\u00d7"),
    "ValidationResult.load_test_passed": ("FAILED: packed layers survive", "failed</b> Every packed layer survived"),
    "ValidationResult.weight_range_valid": ("FAILED: dequantized", "failed</b> Every dequantized weight"),
    "ValidationResult.errors": ("The error.", "The error."),
    "ValidationResult.warnings": ("The warning.", "The warning."),
    "ComparisonResult.measure": ("kl ", "KL divergence"),
    "ComparisonResult.value": ("0.0613", "0.0613"),
    "ComparisonResult.rows": ("1613 rows", "1,613 rows"),
    "ComparisonResult.samples": ("1619 samples", "1,619 samples"),
    "Tradeoff.criterion": ("KL of the model's logits", "KL of the model's logits"),
    "Tradeoff.layers": ("the.layer  ", ">the.layer<"),
    "Tradeoff.curve": ("5.125", 'class="curve"'),
    "Tradeoff.bits_per_weight": ("7.375", "7.375"),
    "Tradeoff.evaluations": ("judged by your function", "your function judged"),
    "LayerTradeoff.layer": ("the.layer  ", ">the.layer<"),
    "LayerTradeoff.weights": (" 4091 ", "4,091"),
    "LayerTradeoff.options": (None, None),
    "LayerTradeoff.chosen": (f"0.0317  {CHOSEN}", f">0.0317</td><td>{CHOSEN}"),
    "LayerTradeoff.worth": ("0.0317", "0.0317"),
    "SchemeCost.scheme": (f"0.0317  {CHOSEN}", f">0.0317</td><td>{CHOSEN}"),
    "SchemeCost.size": (" 13.0 KiB ", "13.0 KiB"),
    "SchemeCost.output_sqnr_db": (" 44.25\n", "44.25"),
    "SchemeCost.noise": (None, None),
    "CurvePoint.bits_per_weight": ("9.125", "9.12<"),
    "CurvePoint.noise": ("0.625", ">0.625<"),
    "Evaluation.bits_per_weight": ("6.875", "6.875"),
    "Evaluation.value": ("0.8125", "0.8125"),
    "Evaluation.accepted": ("refused", "refused"),
}


def documented() -> Iterator[tuple[str, str, bool, str, str, str]]:
    """Class, field, whether it may be missing, type, and what is said of text and page."""
    schema = PAGE.read_text(encoding="utf-8").split("## The JSON form")[1]
    for name, body in re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", schema, re.DOTALL | re.MULTILINE):
        for row in re.findall(r"^\| `(\w+)`(\??) \| (.*?) \| .* \| (yes|-) \| (yes|-) \|$", body, re.MULTILINE):
            field, optional, kind, text, page = row
            yield name, field, bool(optional), kind, text, page


def reachable(kind: Any) -> set[type]:
    """All attrs classes that a value of a kind may hold."""
    found: set[type] = set()
    todo = [kind]
    while todo:
        one = todo.pop()
        if attrs.has(one) and one not in found:
            found.add(one)
            todo += typing.get_type_hints(one).values()
        todo += typing.get_args(one)
    return found


def in_words(kind: Any) -> str:
    """A type as the page names it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(one) for one in arguments if one is not type(None))
    if origin is typing.Literal:
        return " or ".join(f'`"{one}"`' for one in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(map(in_words, arguments))}]"
    if origin in (tuple, list):
        return f"list of {in_words(arguments[0])}"
    if attrs.has(kind):
        return str(kind.__name__)
    if kind is not str and issubclass(kind, enum.Enum):
        return " or ".join(f'`"{one.name.lower()}"`' for one in kind)
    return {int: "integer", float: "number", str: "text", bool: "flag", torch.dtype: "dtype"}[kind]


def test_the_documented_fields_are_those_of_the_classes() -> None:
    """Each class that a report may hold, each field with its type, and whether it may be missing."""
    said = {(name, field): (optional, kind) for name, field, optional, kind, _, _ in documented()}
    classes = reachable(mq.QuantReport)
    are = {
        (one.__name__, field.name): (
            field.default is not attrs.NOTHING,
            in_words(typing.get_type_hints(one)[field.name]),
        )
        for one in classes
        for field in attrs.fields(one)
    }
    assert said == are
    assert {name.split(".")[0] for name in TOLD} == {one.__name__ for one in classes}


def test_json_has_the_fields_and_leaves_out_defaults() -> None:
    """Every required field is there; the whole survives."""
    data = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert mq.QuantReport.from_dict(data) == REPORT
    required = {field for name, field, optional, *_ in documented() if name == "QuantReport" and not optional}
    bare = mq.QuantReport(mq.Scheme(), (), (), 0, 0).to_dict()
    assert bare.keys() == required | {"version"}
    assert bare["scheme"] == {}
    assert (data["version"], data["layers"][1]["scheme"]) == (1, {"dtype": "float16"})
    assert data.keys() == {field for name, field, *_ in documented() if name == "QuantReport"} | {"version"}


@pytest.mark.parametrize(("form", "column"), [("text", 0), ("html", 1)])
def test_each_fact_is_told_where_the_page_says_so(form: str, column: int) -> None:
    """And nowhere is said that it is not told while it is known to be."""
    shown = unescape(mq.render_report(REPORT, form, plugins=False))
    said = {f"{name}.{field}": marks[column] == "yes" for name, field, _, _, *marks in documented()}
    assert said == {name: told[column] is not None for name, told in TOLD.items()}
    missing = {
        name: told[column] for name, told in TOLD.items() if told[column] is not None and told[column] not in shown
    }
    assert missing == {}


def test_the_text_ends_with_the_recipe_and_names_what_was_not_called() -> None:
    """Facts that are easy to overlook."""
    text = str(REPORT)
    assert text.endswith('names = ["the.<name>"]')
    assert "never called by it: 'never.called'" in text
    assert "not validated" in str(attrs.evolve(REPORT, validation=None))
    passed = attrs.evolve(REPORT, validation=mq.ValidationResult(1.0, load_test_passed=True, weight_range_valid=True))
    assert "FAILED" not in str(passed)
    assert "not validated" not in str(passed)
